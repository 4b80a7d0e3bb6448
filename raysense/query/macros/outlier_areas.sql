-- Area under the ROC curve (ties count half) and under the precision-recall curve (average precision) of every measure of outlier_roc(), with percentile intervals of the given level from a Poisson bootstrap over samples in which outliers and others keep their numbers. It takes seconds a target: of_scan names the only scan to do; target layer is done only with layers := true.
-- tables: influence, samples
CREATE OR REPLACE MACRO outlier_areas(outlier_split := 'outlier', replicates := 200, seed := 0, level := 0.95, of_scan := NULL, layers := false) AS TABLE
WITH scores AS (
    SELECT *, dense_rank() OVER (ORDER BY scan, target, layer, objective, method, measure) AS curve
    FROM (
        UNPIVOT (
            SELECT
                scan, target, layer, objective, method, sample_id, split = outlier_split AS outlier,
                fi, jacobian_norm, cook, fi_bound
            FROM influence JOIN samples USING (scan, sample_id)
            WHERE (of_scan IS NULL OR scan = of_scan) AND (layers OR layer IS NULL)
        )
        ON fi, jacobian_norm, cook, fi_bound INTO NAME measure VALUE value
    )
),
curves AS (
    SELECT
        curve, scan, target, layer, objective, method, measure, count(*) AS n, count(*) FILTER (outlier) AS n_outliers
    FROM scores
    GROUP BY ALL
    HAVING n_outliers > 0 AND n_outliers < n
),
-- Only the values of outliers matter as thresholds: steps numbers them downwards, odd steps hold outliers and the
-- others tied with them, even steps the others between two such values.
marked AS (
    SELECT
        curve, sample_id, outlier, value,
        bool_or(outlier) OVER tie AS holds_outlier,
        row_number() OVER tie = 1 AS first_of_tie
    FROM scores SEMI JOIN curves USING (curve)
    WINDOW tie AS (PARTITION BY curve, value)
),
placed AS (
    SELECT
        curve, sample_id, outlier,
        (2 * count_if(first_of_tie AND holds_outlier) OVER (PARTITION BY curve ORDER BY value DESC)
        - holds_outlier::INTEGER)::INTEGER AS step
    FROM marked
),
-- Replicate 0 is the data themselves.
drawn AS (
    SELECT
        curve, replicate, step,
        sum(CASE WHEN outlier THEN weight ELSE 0 END)::DOUBLE AS hits,
        sum(CASE WHEN outlier THEN 0 ELSE weight END)::DOUBLE AS false_alarms
    FROM (
        SELECT
            curve, step, outlier, replicate::INTEGER AS replicate,
            CASE WHEN replicate = 0 THEN 1 ELSE poisson_weight(sample_id, replicate, seed := seed) END AS weight
        FROM placed, range(replicates + 1) AS r(replicate)
    )
    WHERE weight > 0
    GROUP BY ALL
),
summed AS (
    SELECT
        *,
        sum(hits) OVER above AS all_hits,
        sum(false_alarms) OVER above AS all_false_alarms,
        sum(hits) OVER every AS outliers,
        sum(false_alarms) OVER every AS others
    FROM drawn
    WINDOW
        every AS (PARTITION BY curve, replicate),
        above AS (every ORDER BY step ROWS UNBOUNDED PRECEDING)
),
areas AS (
    SELECT
        curve, replicate,
        sum(hits / outliers * (1 - (all_false_alarms - false_alarms / 2) / others)) AS roc_area,
        sum(
            hits / outliers * (n_outliers * all_hits / outliers)
            / (n_outliers * all_hits / outliers + (n - n_outliers) * all_false_alarms / others)
        ) AS pr_area
    FROM summed JOIN curves USING (curve)
    WHERE hits > 0 AND others > 0
    GROUP BY ALL
),
intervals AS (
    SELECT
        curve,
        max(roc_area) FILTER (replicate = 0) AS roc_area,
        max(pr_area) FILTER (replicate = 0) AS pr_area,
        quantile_cont(roc_area, [(1 - level) / 2, (1 + level) / 2]) FILTER (replicate > 0) AS roc,
        quantile_cont(pr_area, [(1 - level) / 2, (1 + level) / 2]) FILTER (replicate > 0) AS pr
    FROM areas
    GROUP BY ALL
)
SELECT
    scan, target, layer, objective, method, measure, n, n_outliers,
    roc_area, roc[1] AS roc_lower, roc[2] AS roc_upper, pr_area, pr[1] AS pr_lower, pr[2] AS pr_upper
FROM curves JOIN intervals USING (curve)
ORDER BY scan, target, layer, objective, method, measure;
