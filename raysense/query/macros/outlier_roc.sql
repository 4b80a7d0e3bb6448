-- ROC and precision-recall points of FI, Jacobian norm, Cook's local influence and the softmax alone (measure fi_bound) at telling the samples of split outlier_split from all others: samples with a value of at least threshold are flagged, one row a distinct value; threshold NULL flags none. Their areas: outlier_areas().
-- tables: influence, samples
CREATE OR REPLACE MACRO outlier_roc(outlier_split := 'outlier') AS TABLE
WITH scores AS (
    UNPIVOT (
        SELECT
            scan, target, layer, objective, method, split = outlier_split AS outlier,
            fi, jacobian_norm, cook, fi_bound
        FROM influence JOIN samples USING (scan, sample_id)
    )
    ON fi, jacobian_norm, cook, fi_bound INTO NAME measure VALUE threshold
),
tied AS (
    SELECT
        scan, target, layer, objective, method, measure, threshold,
        count_if(outlier) AS outliers,
        count_if(NOT outlier) AS others
    FROM scores
    GROUP BY ALL
),
flagged AS (
    SELECT
        *,
        sum(outliers) OVER above AS hits,
        sum(others) OVER above AS false_alarms,
        sum(outliers) OVER every AS n_outliers,
        sum(others) OVER every AS n_others
    FROM tied
    WINDOW
        every AS (PARTITION BY scan, target, layer, objective, method, measure),
        above AS (every ORDER BY threshold DESC ROWS UNBOUNDED PRECEDING)
),
points AS (
    SELECT
        scan, target, layer, objective, method, measure, threshold,
        false_alarms / n_others AS fpr,
        hits / n_outliers AS recall,
        hits / (hits + false_alarms) AS precision
    FROM flagged
    WHERE n_outliers > 0 AND n_others > 0
)
SELECT scan, target, layer, objective, method, measure, threshold, recall AS tpr, fpr, precision, recall FROM points
UNION ALL
SELECT DISTINCT scan, target, layer, objective, method, measure, NULL::DOUBLE, 0.0, 0.0, NULL::DOUBLE, 0.0 FROM points
ORDER BY scan, target, layer, objective, method, measure, threshold DESC NULLS FIRST;
