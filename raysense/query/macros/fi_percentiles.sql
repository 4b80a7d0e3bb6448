-- Percentiles of FI in every split, 75th to 100th as in Table 2 of Shu & Zhu (2019), linearly interpolated. For method bound FI is unknown (NULL) and fi_upper, an upper bound of it, is all there is.
-- tables: influence, samples
CREATE OR REPLACE MACRO fi_percentiles() AS TABLE
WITH quantiles AS (
    SELECT
        scan, target, layer, objective, method, split,
        quantile_cont(fi, [0.75, 0.80, 0.85, 0.90, 0.95, 0.98, 0.99, 1.00]) AS fi,
        quantile_cont(fi_upper, [0.75, 0.80, 0.85, 0.90, 0.95, 0.98, 0.99, 1.00]) AS fi_upper
    FROM influence JOIN samples USING (scan, sample_id)
    GROUP BY ALL
)
SELECT
    scan, target, layer, objective, method, split,
    unnest([75, 80, 85, 90, 95, 98, 99, 100]) AS percentile,
    unnest(fi) AS fi,
    unnest(fi_upper) AS fi_upper
FROM quantiles
ORDER BY scan, target, layer, objective, method, split, percentile;
