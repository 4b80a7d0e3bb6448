-- Every scan, split and layer in one row, as in Tables 1, 2 and 5-7 of Khaitan & Banerjee (2026): mean KL over ordered pairs of different classes (NULL for one class), mean entropy and mean density of the classes, each class counting alike, and the entropy of all classes together; nats, smoothing as in kl_matrix().
-- tables: significance, layers, classes
CREATE OR REPLACE MACRO path_summary(layer := NULL, smoothing := 0.5) AS TABLE
WITH divergences AS (
    SELECT k.scan_a AS scan, k.split_a AS split, k.layer AS name, avg(kl) AS mean_inter_class_kl
    FROM kl_pairs(layer := layer, smoothing := smoothing) AS k
    WHERE class_a <> class_b
    GROUP BY ALL
),
averages AS (
    SELECT
        c.scan, c.split, c.layer AS name, count(c.class) AS n_classes,
        max(c.n_samples) FILTER (c.class IS NULL) AS n_samples,
        avg(c.entropy) FILTER (c.class IS NOT NULL) AS mean_class_entropy,
        max(c.entropy) FILTER (c.class IS NULL) AS overall_entropy,
        avg(c.density) FILTER (c.class IS NOT NULL) AS mean_density
    FROM class_paths(layer := layer, smoothing := smoothing) AS c
    GROUP BY ALL
)
SELECT
    a.scan, a.split, a.name AS layer, n_classes, n_samples, mean_inter_class_kl, mean_class_entropy, overall_entropy,
    mean_density
FROM averages AS a
LEFT JOIN divergences AS d ON d.scan = a.scan AND d.split = a.split AND d.name = a.name
LEFT JOIN layers AS l ON l.scan = a.scan AND l.layer = a.name
ORDER BY a.scan, a.split, l.position, a.name;
