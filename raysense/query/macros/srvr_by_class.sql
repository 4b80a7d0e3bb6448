-- Semantic robust volume ratio of every class (label NULL: all classes), as fractions of the space; kind adversarial: the same of adversarial regions. Method published is the mean over naive, oir_b and oir_w of Table 2 of Hamdi & Ghanem (2020), where all three were grown. srvr is their formula: the mean of min(volume, 1), boxes not cut to the space, diverged ones counted as 1; clipped counts the part inside the space instead, and feasible_srvr that part of the boxes that meet Eq. (2), others as 0. Standard errors by a Poisson bootstrap over shapes, NULL for one shape alone.
-- tables: regions, subjects
CREATE OR REPLACE MACRO srvr_by_class(replicates := 200, seed := 0) AS TABLE
WITH averaged AS (
    SELECT scan, kind FROM regions
    WHERE method IN ('naive', 'oir_b', 'oir_w')
    GROUP BY ALL
    HAVING count(DISTINCT method) = 3
),
boxes AS (
    SELECT
        scan, shape_id, label, kind, family,
        unnest(
            CASE WHEN method IN ('naive', 'oir_b', 'oir_w') AND (scan, kind) IN (SELECT (scan, kind) FROM averaged)
            THEN [method, 'published'] ELSE [method] END
        ) AS method,
        CASE WHEN diverged THEN 1 ELSE least(abs(volume), 1) END AS volume,
        CASE WHEN diverged THEN 1 ELSE volume_clipped END AS clipped,
        CASE WHEN holds AND NOT diverged THEN volume_clipped ELSE 0 END AS feasible,
        coalesce(holds, false) AS holds, converged, diverged, evaluations
    FROM regions
    WHERE u0_score IS NOT NULL  -- a network that gives no finite score says nothing of robustness
),
shapes AS (
    SELECT
        scan, label, kind, family, method, shape_id, count(*) AS n,
        sum(volume) AS volume, sum(clipped) AS clipped, sum(feasible) AS feasible,
        count_if(holds) AS n_holds, count_if(converged) AS n_converged, count_if(diverged) AS n_diverged,
        sum(evaluations) AS evaluations
    FROM boxes
    GROUP BY GROUPING SETS (
        (scan, label, kind, family, method, shape_id),
        (scan, kind, family, method, shape_id)
    )
),
estimates AS (
    SELECT
        scan, label, kind, family, method, count(*) AS n_shapes, sum(n)::BIGINT AS n_boxes,
        sum(volume) / sum(n) AS srvr, sum(clipped) / sum(n) AS clipped, sum(feasible) / sum(n) AS feasible_srvr,
        sum(n_holds) / sum(n) AS fraction_holds, sum(n_converged) / sum(n) AS fraction_converged,
        sum(n_diverged) / sum(n) AS fraction_diverged, sum(evaluations) / sum(n) AS mean_evaluations
    FROM shapes
    GROUP BY ALL
),
-- A shape has one weight for all scans and methods, so that their differences are resampled as pairs.
weights AS MATERIALIZED (
    SELECT shape_id, replicate, poisson_weight(shape_id, replicate, seed := seed) AS weight
    FROM (SELECT DISTINCT shape_id FROM shapes), range(1, replicates + 1) AS r(replicate)
),
drawn AS (
    SELECT
        scan, label, kind, family, method, replicate,
        sum(weight * volume) / sum(weight * n) AS volume,
        sum(weight * clipped) / sum(weight * n) AS clipped,
        sum(weight * feasible) / sum(weight * n) AS feasible
    FROM shapes JOIN weights USING (shape_id)
    WHERE weight > 0
    GROUP BY ALL
),
errors AS (
    SELECT
        scan, label, kind, family, method,
        stddev_samp(volume) AS stderr, stddev_samp(clipped) AS clipped_stderr, stddev_samp(feasible) AS feasible_stderr
    FROM drawn
    GROUP BY ALL
),
names AS (
    SELECT scan, label, string_agg(DISTINCT class_name, ', ' ORDER BY class_name) AS class_name FROM subjects GROUP BY ALL
)
SELECT
    e.scan, scans.model, e.label, names.class_name, e.kind, e.family, e.method, n_shapes, n_boxes,
    srvr, CASE WHEN n_shapes > 1 THEN stderr END AS stderr,
    clipped, CASE WHEN n_shapes > 1 THEN clipped_stderr END AS clipped_stderr,
    feasible_srvr, CASE WHEN n_shapes > 1 THEN feasible_stderr END AS feasible_stderr,
    fraction_holds, fraction_converged, fraction_diverged, mean_evaluations
FROM estimates AS e
JOIN scans ON scans.scan = e.scan
LEFT JOIN errors
    ON errors.scan = e.scan AND errors.label IS NOT DISTINCT FROM e.label AND errors.kind = e.kind
    AND errors.family = e.family AND errors.method = e.method
LEFT JOIN names ON names.scan = e.scan AND names.label = e.label
ORDER BY e.scan, e.label NULLS FIRST, e.kind DESC, e.family, e.method;
