-- How far the decision boundary is, for samples predicted correctly and not: mean and percentiles of quantity distance (norm of r(x) = z - x, pixel values) and of quantity relative (distance / norm of the image, DeepFool's measure of robustness) over the n_found samples whose boundary was found; n_outside were not in the region (distance 0), n_blocked met no boundary.
-- tables: boundary, samples
CREATE OR REPLACE MACRO boundary_distances() AS TABLE
WITH measured AS (
    SELECT
        scan, split, norm, label = predicted AS correct, status,
        CASE WHEN status = 'found' AND isfinite(distance) THEN distance END AS distance,
        image_norm
    FROM boundary JOIN samples USING (scan, sample_id)
),
grouped AS (
    SELECT
        scan, split, norm, correct, count(*) AS n, count(*) FILTER (status = 'found') AS n_found,
        count(*) FILTER (status = 'outside') AS n_outside, count(*) FILTER (status = 'blocked') AS n_blocked,
        [
            {
                'quantity': 'distance', 'mean': avg(distance),
                'p': quantile_cont(distance, [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
            },
            {
                'quantity': 'relative', 'mean': avg(distance / nullif(image_norm, 0)),
                'p': quantile_cont(distance / nullif(image_norm, 0), [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
            }
        ] AS quantities
    FROM measured
    GROUP BY ALL
)
SELECT
    scan, split, norm, correct, q.quantity, n, n_found, n_outside, n_blocked, q.mean,
    q.p[1] AS p1, q.p[2] AS p5, q.p[3] AS p25, q.p[4] AS p50, q.p[5] AS p75, q.p[6] AS p95, q.p[7] AS p99
FROM grouped, unnest(quantities) AS u(q)
ORDER BY scan, split, norm, correct DESC, q.quantity;
