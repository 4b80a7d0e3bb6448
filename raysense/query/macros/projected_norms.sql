-- Table 1 of Fawzi et al. (2018): norm of the projection of perturbations on S, the span of the shared directions, over their own norm, 0 to 1: mean over n samples and its standard error. Random perturbations have about sqrt(dimension of S / dimension of images).
-- tables: direction_norms, samples
CREATE OR REPLACE MACRO projected_norms() AS TABLE
SELECT
    scan, split, perturbation, count(*) AS n, avg(share) AS mean_share,
    stddev_samp(share) / sqrt(count(*)) AS stderr
FROM direction_norms JOIN samples USING (scan, sample_id)
WHERE isfinite(share)
GROUP BY scan, split, perturbation
ORDER BY
    scan, split,
    list_position(['random', 'adversarial', 'difference', 'image gradient', 'logit gradient'], perturbation), perturbation;
