-- How much FI says beyond the softmax, per target and layer: rows at fi_bound = (1 - p)/p to within the relative tolerance, rows below it, the median of FI / fi_bound, and ranks. For method certified n_below counts rows certainly below and n_at_bound those whose interval includes the bound; n_above can only occur under the published rank rule. For method bound FI is unknown and so are the counts (NULL).
-- tables: influence
CREATE OR REPLACE MACRO fi_informative(tolerance := 1e-6) AS TABLE
WITH compared AS (
    SELECT
        scan, target, layer, objective, method, rank, fi, fi_bound,
        CASE method WHEN 'exact' THEN fi WHEN 'certified' THEN fi_upper END AS highest
    FROM influence
),
counted AS (
    SELECT
        scan, target, layer, objective, method,
        count(*) AS n,
        count(highest) AS n_known,
        count(*) FILTER (highest BETWEEN (1 - tolerance) * fi_bound AND (1 + tolerance) * fi_bound) AS n_at_bound,
        count(*) FILTER (highest < (1 - tolerance) * fi_bound) AS n_below,
        count(*) FILTER (highest > (1 + tolerance) * fi_bound) AS n_above,
        median(CASE WHEN fi = fi_bound THEN 1 ELSE fi / fi_bound END) AS median_ratio,
        median(rank) AS median_rank,
        max(rank) AS max_rank
    FROM compared
    GROUP BY ALL
)
SELECT
    scan, target, layer, objective, method, n,
    CASE WHEN n_known > 0 THEN n_at_bound END AS n_at_bound,
    CASE WHEN n_known > 0 THEN n_below END AS n_below,
    CASE WHEN n_known > 0 THEN n_above END AS n_above,
    n_at_bound / nullif(n_known, 0) AS fraction_at_bound,
    n_below / nullif(n_known, 0) AS fraction_informative,
    median_ratio, median_rank, max_rank
FROM counted
ORDER BY scan, target, layer, objective, method;
