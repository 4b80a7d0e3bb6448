-- Misclassification rate, the share of noisy images whose predicted class changes, for noise in S, the span of the shared directions, and in its complement (Figure 7 of Fawzi et al. 2018); magnitude is over the mean norm of the images. stderr is over samples, since draws of one sample are not independent; binomial_stderr takes them as independent.
-- tables: direction_noise, samples
CREATE OR REPLACE MACRO noise_robustness() AS TABLE
WITH counted AS (
    SELECT
        scan, split, space, magnitude, count(*) AS n, sum(draws) AS draws, sum(changed) AS changed,
        sum(changed) / sum(draws) AS rate, sum(changed ** 2) AS squares, sum(changed::DOUBLE * draws) AS products,
        sum(draws ** 2) AS squared_draws
    FROM direction_noise JOIN samples USING (scan, sample_id)
    WHERE draws > 0
    GROUP BY ALL
)
SELECT
    scan, split, space, magnitude, n, draws::BIGINT AS draws, changed::BIGINT AS changed, rate,
    -- That of a ratio of sums over samples: residuals changed - rate draws.
    sqrt(greatest(0, squares - 2 * rate * products + rate * rate * squared_draws) * n / nullif(n - 1, 0)) / draws AS stderr,
    sqrt(rate * (1 - rate) / draws) AS binomial_stderr
FROM counted
ORDER BY scan, split, space, magnitude;
