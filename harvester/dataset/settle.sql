-- How a verdict is written: over no row, and over no verdict of a newer journal. That matters when a journal that has
-- lost lines is read again.
INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET state = excluded.state,
    failed_runs = calls.failed_runs + excluded.failed_runs * (calls.state <> 1), seen = excluded.seen,
    segment = excluded.segment, truncated = excluded.truncated, clipped = excluded.clipped, idle = excluded.idle
WHERE calls.state <> 0 AND calls.segment <= excluded.segment;
-- How it is written where rows are refreshed: a verdict on a later window goes over a row, too. asked_at is the end of
-- the window that was asked for, clicks the row's. A failure leaves asked_at as it is: the next run tries again. The one
-- with which the link is given up (most_runs) counts as an answer, so that the link is tried again when it is due.
INSERT INTO calls (id, key, state, failed_runs, seen, segment, truncated, clipped, idle, asked_at, clicks)
VALUES (:id, :key, :state, :failed_runs, :seen, :segment, :truncated, :clipped, :idle,
        CASE :state WHEN 2 THEN NULL ELSE :asked_at END, :clicks)
ON CONFLICT (id) DO UPDATE SET state = :state,
    failed_runs = CASE :state WHEN 0 THEN 0 ELSE calls.failed_runs + :failed_runs * (calls.state <> 1) END,
    seen = :seen, segment = :segment, truncated = :truncated, clipped = :clipped, idle = :idle,
    asked_at = CASE WHEN :state <> 2 OR calls.failed_runs + :failed_runs >= :most_runs THEN :asked_at
                    WHEN calls.state = 1 THEN NULL
                    ELSE calls.asked_at END,
    clicks = CASE :state WHEN 0 THEN :clicks ELSE calls.clicks END,
    clicks_before = CASE :state WHEN 0 THEN calls.clicks ELSE calls.clicks_before END
WHERE calls.segment <= :segment AND (calls.state <> 0 OR :asked_at > coalesce(calls.asked_at, 0))
