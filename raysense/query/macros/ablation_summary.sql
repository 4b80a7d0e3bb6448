-- Separation and spread of the classes by every metric of the ablations of Khaitan & Banerjee (2026, section 4.2): the mean distance over ordered pairs of two classes, and the mean over classes of the distance of a class to itself (metric interactions: mean entropy of the rows). Energy as they report it is metric activations; metric energy is 2 E|X - Y| - E|X - X'| - E|Y - Y'|, whose spread is 0. largest_stderr is the largest standard error of a single pair, 0 where activations of all samples were kept.
-- tables: class_distances
CREATE OR REPLACE MACRO ablation_summary() AS TABLE
SELECT
    scan, split, layer, metric, count(DISTINCT class_a) AS n_classes,
    avg(value) FILTER (class_a <> class_b) AS separation,
    avg(value) FILTER (class_a = class_b) AS spread,
    max(stderr) AS largest_stderr
FROM class_distances
LEFT JOIN layers USING (scan, layer)
GROUP BY scan, split, layer, metric, position
ORDER BY scan, split, position NULLS LAST, layer NULLS LAST, list_position(['interactions', 'outputs', 'activations', 'energy'], metric);
