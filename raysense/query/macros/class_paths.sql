-- Every class of a scan, split and layer of n_rows x n_inputs paths (class NULL: all classes together): samples and observations counted, density = mean proportion of observations in which a path is significant (not smoothed), entropy = mean entropy of a path, nats, with smoothing as in kl_matrix().
-- tables: significance, layers, classes
CREATE OR REPLACE MACRO class_paths(layer := NULL, smoothing := 0.5) AS TABLE
WITH counted AS MATERIALIZED (
    SELECT
        *,
        list_transform(
            [bernoulli(row_count, n_observations, smoothing := smoothing)], lambda b: -(b.p * b.log_odds + b.log_rest)
        )[1] AS entropy
    FROM significance_rows(layer := layer)
),
exceptional AS (
    SELECT
        e.scan, e.split, e.layer AS name, e.class, sum(e.count) AS count,
        sum(
            list_transform(
                [bernoulli(row_count + e.count, n_observations, smoothing := smoothing)],
                lambda b: -(b.p * b.log_odds + b.log_rest)
            )[1] - entropy
        ) AS entropy
    FROM significance_exceptions(layer := layer) AS e
    JOIN counted AS c
        ON c."row" = e."row" AND c.class IS NOT DISTINCT FROM e.class AND c.layer = e.layer AND c.split = e.split
        AND c.scan = e.scan
    GROUP BY ALL
),
whole AS (
    SELECT
        c.scan, c.split, c.layer AS name, c.class, max(n_samples) AS n_samples, max(n_observations) AS n_observations,
        count(*) AS n_rows, max(n_inputs) AS n_inputs, sum(n_inputs * row_count) AS count,
        sum(n_inputs * entropy) AS entropy
    FROM counted AS c
    GROUP BY ALL
)
SELECT
    w.scan, w.split, w.name AS layer, w.class, k.name AS class_name, w.n_samples, w.n_observations, n_rows, n_inputs,
    (w.count + coalesce(e.count, 0)) / (n_rows * n_inputs * w.n_observations) AS density,
    greatest(0, (w.entropy + coalesce(e.entropy, 0)) / (n_rows * n_inputs)) AS entropy
FROM whole AS w
LEFT JOIN exceptional AS e
    ON e.scan = w.scan AND e.split = w.split AND e.name = w.name AND e.class IS NOT DISTINCT FROM w.class
LEFT JOIN classes AS k ON k.scan = w.scan AND k.class = w.class
LEFT JOIN layers AS l ON l.scan = w.scan AND l.layer = w.name
ORDER BY w.scan, w.split, l.position, w.name, w.class;
