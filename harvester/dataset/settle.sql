-- How a verdict is written: over no row, and over no verdict of a newer journal. That matters when a journal that has
-- lost lines is read again.
INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET state = excluded.state,
    failed_runs = calls.failed_runs + excluded.failed_runs * (calls.state <> 1), seen = excluded.seen,
    segment = excluded.segment, truncated = excluded.truncated, clipped = excluded.clipped, idle = excluded.idle
WHERE calls.state <> 0 AND calls.segment <= excluded.segment;
-- How it is written where rows are refreshed: a verdict on a later window goes over a row, too. ?9 is the end of the
-- window that was asked for, ?10 the row's clicks. A failure leaves asked_at as it is: the next run tries again. The one
-- with which the link is given up (?11 runs) counts as an answer, so that the link is tried again when it is due.
INSERT INTO calls (key, state, failed_runs, seen, segment, truncated, clipped, idle, asked_at, clicks)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, CASE ?2 WHEN 2 THEN NULL ELSE ?9 END, ?10)
ON CONFLICT (key) DO UPDATE SET state = ?2,
    failed_runs = CASE ?2 WHEN 0 THEN 0 ELSE calls.failed_runs + ?3 * (calls.state <> 1) END,
    seen = ?4, segment = ?5, truncated = ?6, clipped = ?7, idle = ?8,
    asked_at = CASE WHEN ?2 <> 2 OR calls.failed_runs + ?3 >= ?11 THEN ?9
                    WHEN calls.state = 1 THEN NULL
                    ELSE calls.asked_at END,
    clicks = CASE ?2 WHEN 0 THEN ?10 ELSE calls.clicks END,
    clicks_before = CASE ?2 WHEN 0 THEN calls.clicks ELSE calls.clicks_before END
WHERE calls.segment <= ?5 AND (calls.state <> 0 OR ?9 > coalesce(calls.asked_at, 0))
