-- The n samples with the largest FI of every scan, target and objective, over all splits; place 1 is the largest, ties go by sample_id. For method bound they are ordered by fi_upper, an upper bound of FI.
-- tables: influence, samples
CREATE OR REPLACE MACRO fi_outliers(n := 5) AS TABLE
WITH largest AS (
    SELECT
        scan, target, layer, objective, method,
        min_by(
            {'sample_id': sample_id, 'fi': fi, 'fi_upper': fi_upper, 'fi_bound': fi_bound, 'jacobian_norm': jacobian_norm},
            (-coalesce(fi, fi_upper), sample_id),
            n
        ) AS top
    FROM influence
    GROUP BY ALL
),
placed AS (
    SELECT
        scan, target, layer, objective, method,
        unnest(top, recursive := true),
        generate_subscripts(top, 1) AS place
    FROM largest
)
SELECT
    placed.scan, target, layer, objective, method, place, placed.sample_id, split,
    label, label_class.name AS label_name,
    predicted, predicted_class.name AS predicted_name,
    p_label, fi, fi_upper, fi_bound, jacobian_norm
FROM placed
JOIN samples ON samples.scan = placed.scan AND samples.sample_id = placed.sample_id
LEFT JOIN classes AS label_class ON label_class.scan = placed.scan AND label_class.class = label
LEFT JOIN classes AS predicted_class ON predicted_class.scan = placed.scan AND predicted_class.class = predicted
ORDER BY placed.scan, target, layer, objective, method, place;
