-- How far every class is from the others: mean of KL(class || other) and of KL(other || class) over the other classes, and the class it diverges least from (nearest), as kl_matrix(); with samples and observations counted, density = mean proportion of significant paths (not smoothed), and entropy. Class NULL is all classes together, without separation.
-- tables: significance, layers, classes
CREATE OR REPLACE MACRO class_separation(layer := NULL, smoothing := 0.5) AS TABLE
WITH pairs AS MATERIALIZED (
    SELECT k.scan_a AS scan, k.split_a AS split, k.layer AS name, class_a, class_b, kl
    FROM kl_pairs(layer := layer, smoothing := smoothing) AS k
    WHERE class_a <> class_b
),
leaving AS (
    SELECT
        scan, split, name, class_a AS class, avg(kl) AS mean_kl_to, min_by(class_b, (kl, class_b)) AS nearest,
        min(kl) AS nearest_kl
    FROM pairs
    GROUP BY ALL
),
arriving AS (
    SELECT scan, split, name, class_b AS class, avg(kl) AS mean_kl_from FROM pairs GROUP BY ALL
)
SELECT
    c.scan, c.split, c.layer, c.class, c.class_name, c.n_samples, c.n_observations, c.density, c.entropy,
    mean_kl_to, mean_kl_from, nearest, k.name AS nearest_name, nearest_kl
FROM class_paths(layer := layer, smoothing := smoothing) AS c
LEFT JOIN leaving AS a ON a.scan = c.scan AND a.split = c.split AND a.name = c.layer AND a.class = c.class
LEFT JOIN arriving AS b ON b.scan = c.scan AND b.split = c.split AND b.name = c.layer AND b.class = c.class
LEFT JOIN classes AS k ON k.scan = c.scan AND k.class = nearest
LEFT JOIN layers AS l ON l.scan = c.scan AND l.layer = c.layer
ORDER BY c.scan, c.split, l.position, c.layer, c.class;
