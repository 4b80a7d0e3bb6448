-- Class-global maps, as in Figure 4 of Hamdi & Ghanem (2020): the score at every grid point averaged over the shapes of a class, for every scan (network); rows with scan NULL average over the scans as well, as in Figure 5.
-- tables: semantic_maps, subjects
CREATE OR REPLACE MACRO class_semantic_map() AS TABLE
SELECT
    scan, class_name, m.axes, steps, cell, u,
    avg(score) AS score, stddev_samp(score) AS std_score, count(*) AS n_maps
FROM semantic_maps AS m
LEFT JOIN (SELECT scan, label, string_agg(DISTINCT class_name, ', ' ORDER BY class_name) AS class_name FROM subjects GROUP BY ALL) USING (scan, label)
GROUP BY GROUPING SETS ((scan, class_name, m.axes, steps, cell, u), (class_name, m.axes, steps, cell, u))
ORDER BY scan NULLS FIRST, class_name, m.axes, steps, cell;
