-- The n lines of paths of every class that are significant most often: path (row, column), or with column NULL the other n_paths columns of the row, which are all alike; p = proportion of the class's observations, p_overall that of all classes for the same paths (the mean over them), neither smoothed, contrast = p - p_overall. Place 1 has the largest p, ties go by contrast, row and column; paths that are never significant are left out.
-- tables: significance, layers, classes
CREATE OR REPLACE MACRO significant_paths(layer := NULL, n := 10) AS TABLE
WITH counted AS MATERIALIZED (
    SELECT r.* RENAME (layer AS name) FROM significance_rows(layer := layer) AS r
),
exceptions AS MATERIALIZED (
    SELECT e.* RENAME (layer AS name) FROM significance_exceptions(layer := layer) AS e
),
class_rows AS MATERIALIZED (
    SELECT
        c.scan, c.split, c.name, c.class, c."row", c.n_inputs, c.row_count, c.n_observations,
        o.row_count AS overall_row_count, o.n_observations AS overall_observations
    FROM counted AS c
    JOIN counted AS o ON o."row" = c."row" AND o.name = c.name AND o.split = c.split AND o.scan = c.scan
    WHERE c.class IS NOT NULL AND o.class IS NULL
),
single AS MATERIALIZED (
    SELECT e.scan, e.split, e.name, e.class, e."row", e."column", e.count, o.count AS overall_count
    FROM exceptions AS e
    JOIN exceptions AS o
        ON o."row" = e."row" AND o."column" = e."column" AND o.name = e.name AND o.split = e.split AND o.scan = e.scan
    WHERE e.class IS NOT NULL AND o.class IS NULL
),
others AS (
    SELECT
        c.*, c.n_inputs - coalesce(s.n_columns, 0) AS n_paths,
        coalesce(o.count, 0) - coalesce(s.overall_count, 0) AS overall_count
    FROM class_rows AS c
    LEFT JOIN (
        SELECT
            scan, split, name, class, "row", count(*) AS n_columns, sum(overall_count)::BIGINT AS overall_count
        FROM single
        GROUP BY ALL
    ) AS s ON s."row" = c."row" AND s.class = c.class AND s.name = c.name AND s.split = c.split AND s.scan = c.scan
    LEFT JOIN (
        SELECT scan, split, name, "row", sum(count)::BIGINT AS count FROM exceptions WHERE class IS NULL GROUP BY ALL
    ) AS o ON o."row" = c."row" AND o.name = c.name AND o.split = c.split AND o.scan = c.scan
),
lines AS (
    SELECT
        s.scan, s.split, s.name, s.class, s."row", s."column", 1 AS n_paths,
        (row_count + s.count) / n_observations AS p,
        (overall_row_count + s.overall_count) / overall_observations AS p_overall
    FROM single AS s
    JOIN class_rows AS c
        ON c."row" = s."row" AND c.class = s.class AND c.name = s.name AND c.split = s.split AND c.scan = s.scan
    UNION ALL
    SELECT
        scan, split, name, class, "row", NULL, n_paths, row_count / n_observations,
        (overall_row_count + overall_count / n_paths) / overall_observations
    FROM others
    WHERE n_paths > 0 AND row_count > 0
),
best AS (
    SELECT
        scan, split, name, class,
        min_by(
            {
                'row': "row", 'column': "column", 'n_paths': n_paths, 'p': p, 'p_overall': p_overall,
                'contrast': p - p_overall
            },
            (-p, p_overall - p, "row", coalesce("column", 2147483647)),
            n
        ) AS top
    FROM lines
    GROUP BY ALL
),
placed AS (
    SELECT scan, split, name, class, generate_subscripts(top, 1) AS place, unnest(top, recursive := true) FROM best
)
SELECT
    b.scan, b.split, b.name AS layer, b.class, k.name AS class_name, b.place, b."row", b."column", b.n_paths, b.p,
    b.p_overall, b.contrast
FROM placed AS b
LEFT JOIN classes AS k ON k.scan = b.scan AND k.class = b.class
LEFT JOIN layers AS l ON l.scan = b.scan AND l.layer = b.name
ORDER BY b.scan, b.split, l.position, b.name, b.class, b.place;
