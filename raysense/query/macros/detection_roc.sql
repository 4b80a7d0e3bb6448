-- ROC and precision-recall points of telling samples perturbed by an attack at a scale (deepfool: x + scale r(x); noise: random of the same norm) from samples as they are, by rho of Algorithm 2 of Fawzi et al. (2018) and the baselines max_softmax and energy: scores of at least threshold are flagged (of max_softmax: 1 - max_softmax); threshold NULL flags none. The slides draw 1 - fpr against 1 - tpr. Areas: detection_areas().
-- tables: detections, samples
CREATE OR REPLACE MACRO detection_roc() AS TABLE
WITH tied AS (
    SELECT
        scan, split, attack, scale, measure, score,
        count(*) FILTER (perturbed) AS hit, count(*) FILTER (NOT perturbed) AS alarmed
    FROM detection_scores()
    GROUP BY ALL
),
flagged AS (
    SELECT
        *,
        sum(hit) OVER above AS hits,
        sum(alarmed) OVER above AS false_alarms,
        sum(hit) OVER every AS n_perturbed,
        sum(alarmed) OVER every AS n_original
    FROM tied
    WINDOW
        every AS (PARTITION BY scan, split, attack, scale, measure),
        above AS (every ORDER BY score DESC ROWS UNBOUNDED PRECEDING)
),
points AS (
    SELECT
        scan, split, attack, scale, measure, score AS threshold, false_alarms / n_original AS fpr,
        hits / n_perturbed AS tpr, hits / (hits + false_alarms) AS precision
    FROM flagged
    WHERE n_perturbed > 0 AND n_original > 0
)
SELECT scan, split, attack, scale, measure, threshold, tpr, fpr, precision FROM points
UNION ALL
SELECT DISTINCT scan, split, attack, scale, measure, NULL::DOUBLE, 0.0, 0.0, NULL::DOUBLE FROM points
ORDER BY scan, split, attack, scale, measure, threshold DESC NULLS FIRST;
