-- Scores along single axes, as in Figure 1 of Hamdi & Ghanem (2020), with FI of all axes of the space and its bound (1 - p)/p where they were computed. Rows with shape_id NULL are over all shapes of a class: the mean score, and medians of FI, its bound and the Jacobian norm, which spread over decades.
-- tables: semantic_maps, subjects
CREATE OR REPLACE MACRO semantic_profile() AS TABLE
SELECT
    scan, shape_id, class_name, m.axes AS axis, u[1] AS u,
    avg(score) AS score, median(fi) AS fi, median(fi_bound) AS fi_bound, median(jacobian_norm) AS jacobian_norm,
    count(*) AS n_shapes
FROM semantic_maps AS m
LEFT JOIN (SELECT scan, label, string_agg(DISTINCT class_name, ', ' ORDER BY class_name) AS class_name FROM subjects GROUP BY ALL) USING (scan, label)
WHERE len(u) = 1
GROUP BY GROUPING SETS ((scan, shape_id, class_name, m.axes, u), (scan, class_name, m.axes, u))
ORDER BY scan, m.axes, class_name, shape_id NULLS LAST, u;
