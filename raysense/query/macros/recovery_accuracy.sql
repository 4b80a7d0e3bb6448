-- Algorithm 2 of Fawzi et al. (2018) with threshold t: share_flagged of n inputs have rho >= t, by mistake for attack none and noise. Of the perturbed ones flagged, and of all, recovered_of_... have the class predicted before as recovered label (slides: 74% to 92% at t = 0; chance: guessing among the classes measured). mean_rho, with its standard error over samples, is negative at images and positive at perturbed ones in the slides. Errors of shares are binomial.
-- tables: detections, samples
CREATE OR REPLACE MACRO recovery_accuracy(threshold := 0) AS TABLE
WITH judged AS (
    SELECT
        scan, split, attack, scale, rho, perturbed, d.predicted <> original AS changed, rho >= threshold AS flagged,
        coalesce(recovered_label = original, false) AS recovered, n_classes
    FROM detections AS d JOIN samples USING (scan, sample_id)
    WHERE isfinite(rho) AND (perturbed OR attack <> 'deepfool')
),
counted AS (
    SELECT
        scan, split, attack, scale, count(*) AS n, count(*) FILTER (changed) AS n_changed, avg(rho) AS mean_rho,
        stddev_samp(rho) / sqrt(count(*)) AS rho_stderr, count(*) FILTER (flagged) / count(*) AS share_flagged,
        nullif(count(*) FILTER (perturbed), 0) AS n_perturbed,
        nullif(count(*) FILTER (perturbed AND flagged), 0) AS n_detected,
        count(*) FILTER (perturbed AND flagged AND recovered) / n_detected AS recovered_of_flagged,
        count(*) FILTER (perturbed AND recovered) / n_perturbed AS recovered_of_all,
        avg(1 / n_classes) FILTER (perturbed AND n_classes > 0) AS chance
    FROM judged
    GROUP BY scan, split, attack, scale
)
SELECT
    scan, split, attack, scale, n, n_changed, mean_rho, rho_stderr,
    share_flagged, sqrt(share_flagged * (1 - share_flagged) / n) AS flagged_stderr,
    recovered_of_flagged, sqrt(recovered_of_flagged * (1 - recovered_of_flagged) / n_detected) AS of_flagged_stderr,
    recovered_of_all, sqrt(recovered_of_all * (1 - recovered_of_all) / n_perturbed) AS of_all_stderr, chance
FROM counted
ORDER BY scan, split, list_position(['none', 'deepfool', 'noise'], attack), scale;
