-- The dataset's facts.
CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
-- A call: id counts them in the order in which they became known, key is the record_id's 16 bytes, failed_runs the invocations it failed in, seen the last invocation whose list
-- named it, segment the journal that holds its last line; truncated, clipped: 1 for a row that lacks something;
-- idle: 1 for a row that no call was made for.
-- Where rows are refreshed there are three more columns: asked_at, the end of the window of its last answer (seconds since
-- 1970, null before the first); clicks and clicks_before, those of its last row and of the one before.
CREATE TABLE calls (id INTEGER PRIMARY KEY, key BLOB, state INTEGER, failed_runs INTEGER, seen INTEGER,
                    segment INTEGER, truncated INTEGER, clipped INTEGER, idle INTEGER);
-- The index of calls up to the id in indexed, and perhaps of some behind it: storage.sqlite.KeyIndex has the rest.
CREATE TABLE by_key (key BLOB PRIMARY KEY, id INTEGER) WITHOUT ROWID;
CREATE TABLE indexed (last INTEGER);
INSERT INTO indexed VALUES (0);
CREATE TABLE failures (id INTEGER PRIMARY KEY, call INTEGER UNIQUE, line BLOB);
CREATE TABLE invalid (id INTEGER PRIMARY KEY, line BLOB);
-- A journal file whose rows are not all published yet, and how many of its bytes are committed.
CREATE TABLE journals (segment INTEGER PRIMARY KEY, committed INTEGER);
-- The checkpoint: the growing file's length and rows when it contained all rows before this place of the journal.
CREATE TABLE checkpoint (id INTEGER PRIMARY KEY CHECK (id = 0), segment INTEGER, position INTEGER, bytes INTEGER,
                   rows INTEGER);
-- The history of the runs, as JSON (harvester.history): of a time, whose start is in seconds since 1970, or of a run,
-- whose start is its number, or that of the first run that an entry counts. None of a kind overlap.
CREATE TABLE history (kind TEXT, start INTEGER, entry TEXT, PRIMARY KEY (kind, start)) WITHOUT ROWID;
CREATE TABLE parts (number INTEGER PRIMARY KEY, segment INTEGER UNIQUE, name TEXT, rows INTEGER, bytes INTEGER,
                    sha256 TEXT, calls INTEGER, sealed INTEGER);
