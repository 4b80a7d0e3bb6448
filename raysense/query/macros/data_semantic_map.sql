-- Data semantic map (DSM): the score of every shape at every grid point, averaged over the scans (networks) that have it, with their standard deviation. The mean over the shapes of a class too, as in Figure 5 of Hamdi & Ghanem (2020), is in the rows of class_semantic_map() with scan NULL.
-- tables: semantic_maps, subjects
CREATE OR REPLACE MACRO data_semantic_map() AS TABLE
SELECT
    shape_id, min(class_name) AS class_name, m.axes, steps, cell, u,
    avg(score) AS score, stddev_samp(score) AS std_score, count(*) AS n_scans
FROM semantic_maps AS m
LEFT JOIN (SELECT scan, label, string_agg(DISTINCT class_name, ', ' ORDER BY class_name) AS class_name FROM subjects GROUP BY ALL) USING (scan, label)
GROUP BY shape_id, m.axes, steps, cell, u
ORDER BY shape_id, m.axes, steps, cell;
