-- How many paths of a class (NULL: all classes together) are significant how often: histogram of the proportions count / n_observations, not smoothed, over all paths of a layer. A bin has low <= proportion < high, the last one includes 1; empty bins are rows too.
-- tables: significance, layers
CREATE OR REPLACE MACRO sparsity(layer := NULL, bins := 20) AS TABLE
WITH counted AS MATERIALIZED (
    SELECT r.* RENAME (layer AS name) FROM significance_rows(layer := layer) AS r
),
exceptional AS MATERIALIZED (
    SELECT e.scan, e.split, e.layer AS name, e.class, e."row", row_count + e.count AS count, n_observations
    FROM significance_exceptions(layer := layer) AS e
    JOIN counted AS c
        ON c."row" = e."row" AND c.class IS NOT DISTINCT FROM e.class AND c.name = e.layer AND c.split = e.split
        AND c.scan = e.scan
),
-- The paths of a row that are no exceptions are counted at once.
counts AS (
    SELECT scan, split, name, class, count, n_observations, 1 AS n_paths FROM exceptional
    UNION ALL
    SELECT c.scan, c.split, c.name, c.class, row_count, n_observations, n_inputs - coalesce(n_exceptions, 0)
    FROM counted AS c
    LEFT JOIN (
        SELECT scan, split, name, class, "row", count(*) AS n_exceptions FROM exceptional GROUP BY ALL
    ) AS e
        ON e."row" = c."row" AND e.class IS NOT DISTINCT FROM c.class AND e.name = c.name AND e.split = c.split
        AND e.scan = c.scan
),
filled AS (
    SELECT
        scan, split, name, class, least(count * bins // n_observations, bins - 1) + 1 AS bin,
        sum(n_paths)::BIGINT AS n_paths
    FROM counts
    GROUP BY ALL
)
SELECT
    c.scan, c.split, c.name AS layer, c.class, b.bin, (b.bin - 1) / bins AS low, b.bin / bins AS high,
    coalesce(f.n_paths, 0) AS n_paths
FROM (SELECT DISTINCT scan, split, name, class FROM counted) AS c
CROSS JOIN range(1, bins + 1) AS b(bin)
LEFT JOIN filled AS f
    ON f.scan = c.scan AND f.split = c.split AND f.name = c.name AND f.class IS NOT DISTINCT FROM c.class
    AND f.bin = b.bin
LEFT JOIN layers AS l ON l.scan = c.scan AND l.layer = c.name
ORDER BY c.scan, c.split, l.position, c.name, c.class, b.bin;
