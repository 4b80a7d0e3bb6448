-- Area under each ROC curve of detection_roc() (ties count half, 0.5 is chance) with its standard error: that of DeLong et al. (1988), and the covariance of a sample with its own perturbed version (Obuchowski 1997); and average precision. Fawzi et al. (2018) detect small perturbations well, large ones badly.
-- tables: detections, samples
CREATE OR REPLACE MACRO detection_areas() AS TABLE
WITH ranked AS (
    SELECT
        scan, split, attack, scale, measure, sample_id, perturbed,
        rank() OVER (every ORDER BY score) AS first_rank, count(*) OVER (tie) AS ties,
        rank() OVER (own ORDER BY score) AS first_own, count(*) OVER (own_tie) AS own_ties,
        count(*) OVER every AS n, count(*) OVER own AS n_own
    FROM detection_scores()
    WINDOW
        every AS (PARTITION BY scan, split, attack, scale, measure),
        tie AS (PARTITION BY scan, split, attack, scale, measure, score),
        own AS (PARTITION BY scan, split, attack, scale, measure, perturbed),
        own_tie AS (PARTITION BY scan, split, attack, scale, measure, perturbed, score)
),
-- Share of the other kind that scores less, ties half; and precision where the sample's score is the threshold.
placed AS (
    SELECT
        scan, split, attack, scale, measure, sample_id, perturbed, n_own,
        (first_rank + (ties - 1) / 2 - first_own - (own_ties - 1) / 2) / (n - n_own) AS below,
        (n_own - first_own + 1) / (n - first_rank + 1) AS precision
    FROM ranked
    WHERE n_own < n
),
areas AS (
    SELECT
        scan, split, attack, scale, measure, count(*) FILTER (perturbed) AS n_perturbed,
        count(*) FILTER (NOT perturbed) AS n_original,
        avg(below) FILTER (perturbed) AS area, avg(precision) FILTER (perturbed) AS average_precision
    FROM placed
    GROUP BY ALL
),
clusters AS (
    SELECT
        scan, split, attack, scale, measure, sample_id,
        coalesce(sum((below - area) / n_perturbed) FILTER (perturbed), 0) AS of_perturbed,
        coalesce(sum((1 - below - area) / n_original) FILTER (NOT perturbed), 0) AS of_original
    FROM placed JOIN areas USING (scan, split, attack, scale, measure)
    GROUP BY ALL
),
errors AS (
    SELECT
        scan, split, attack, scale, measure, count(*) AS n_samples, sum(of_perturbed ** 2) AS perturbed_squares,
        sum(of_original ** 2) AS original_squares, sum(of_perturbed * of_original) AS products
    FROM clusters
    GROUP BY ALL
)
SELECT
    scan, split, attack, scale, measure, n_perturbed, n_original, area AS roc_area,
    sqrt(
        greatest(
            0,
            perturbed_squares * n_perturbed / nullif(n_perturbed - 1, 0)
            + original_squares * n_original / nullif(n_original - 1, 0)
            + 2 * products * n_samples / nullif(n_samples - 1, 0)
        )
    ) AS roc_stderr,
    average_precision
FROM areas JOIN errors USING (scan, split, attack, scale, measure)
ORDER BY scan, split, attack, scale, measure;
