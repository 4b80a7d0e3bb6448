-- Are classification regions connected? Pairs by scenario that a path within the class connects, and the straight segment; over the connected ones, anchor points (mean_anchors_bent: of paths that are not straight) and D(p), length of the path over the distance of its ends. Fawzi et al. (2018) find a path for every pair, 10 anchors and D = 1 + 1e-4 on average. errors: pairs that could not be made, not among pairs.
-- tables: paths
CREATE OR REPLACE MACRO path_statistics() AS TABLE
SELECT
    scan, scenario, count(*) FILTER (error IS NULL) AS pairs, count(*) FILTER (connected) AS connected,
    count(*) FILTER (straight) AS straight,
    count(*) FILTER (connected) / nullif(count(*) FILTER (error IS NULL), 0) AS share_connected,
    count(*) FILTER (straight) / nullif(count(*) FILTER (error IS NULL), 0) AS share_straight,
    avg(anchors) FILTER (connected) AS mean_anchors,
    avg(anchors) FILTER (connected AND NOT straight) AS mean_anchors_bent,
    max(anchors) FILTER (connected) AS max_anchors,
    avg(length_ratio) FILTER (connected AND isfinite(length_ratio)) AS mean_length_ratio,
    quantile_cont(length_ratio, 0.5) FILTER (connected AND isfinite(length_ratio)) AS median_length_ratio,
    max(length_ratio) FILTER (connected AND isfinite(length_ratio)) AS max_length_ratio,
    avg(distance) FILTER (isfinite(distance)) AS mean_distance, sum(checked)::BIGINT AS checked,
    count(*) FILTER (error IS NOT NULL) AS errors
FROM paths
GROUP BY scan, scenario
ORDER BY scan, list_position(['data', 'adversarial', 'noise'], scenario), scenario;
