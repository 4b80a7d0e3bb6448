-- Units, rows and speed of every worker of a scan, and of all together (worker NULL). Gaps of more than `pause` seconds in which no worker computed (an interrupted scan) do not count as wall time; efficiency = busy seconds / wall seconds of the workers.
-- tables: units
CREATE OR REPLACE MACRO throughput(pause := 60) AS TABLE
WITH intervals AS (
    SELECT scan, worker, rows, seconds, epoch_us(started) / 1e6 AS began, epoch_us(started) / 1e6 + seconds AS ended
    FROM units
),
gaps AS (
    SELECT *, began - max(ended) OVER (
        PARTITION BY scan ORDER BY began, ended ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS gap
    FROM intervals
),
numbered AS (
    SELECT *, sum(CASE WHEN gap > pause THEN 1 ELSE 0 END) OVER (
        PARTITION BY scan ORDER BY began, ended ROWS UNBOUNDED PRECEDING
    ) AS session
    FROM gaps
),
sessions AS (
    SELECT scan, session, max(ended) - min(began) AS wall FROM numbered GROUP BY ALL
),
shares AS (
    SELECT scan, worker, session, count(*) AS units, sum(rows)::BIGINT AS rows, sum(seconds) AS busy
    FROM numbered
    GROUP BY ALL
),
workers AS (
    SELECT scan, worker, sum(units)::BIGINT AS units, sum(rows)::BIGINT AS rows, sum(busy) AS busy, sum(wall) AS wall
    FROM shares JOIN sessions USING (scan, session)
    GROUP BY ALL
),
totals AS (
    SELECT scan, sum(units)::BIGINT AS units, sum(rows)::BIGINT AS rows, sum(busy) AS busy, sum(wall) AS worker_wall
    FROM workers
    GROUP BY ALL
),
clock AS (
    SELECT scan, sum(wall) AS wall FROM sessions GROUP BY ALL
)
SELECT
    scan, worker, units, rows, busy AS busy_seconds, rows / nullif(wall, 0) AS rows_per_second,
    wall AS wall_seconds, busy / nullif(wall, 0) AS efficiency
FROM workers
UNION ALL
SELECT
    scan, NULL, units, rows, busy, rows / nullif(wall, 0), wall, busy / nullif(worker_wall, 0)
FROM totals JOIN clock USING (scan)
ORDER BY scan, worker NULLS LAST;
