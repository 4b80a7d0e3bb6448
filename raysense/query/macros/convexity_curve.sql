-- Are classification regions convex? Share of random convex combinations of k images of one predicted class that are predicted as it (an experiment of Fawzi et al. 2018), with its standard error over groups of images; share_whole of the groups have all combinations inside. errors: groups that could not be made.
-- tables: convexity
CREATE OR REPLACE MACRO convexity_curve() AS TABLE
WITH counted AS (
    SELECT
        scan, k, count(*) FILTER (error IS NULL) AS groups,
        sum(combinations) FILTER (error IS NULL) AS combinations, sum(inside) FILTER (error IS NULL) AS inside,
        sum(inside ** 2) FILTER (error IS NULL) AS squares,
        sum(inside::DOUBLE * combinations) FILTER (error IS NULL) AS products,
        sum(combinations ** 2) FILTER (error IS NULL) AS squared_combinations,
        count(*) FILTER (error IS NULL AND inside = combinations) AS whole, count(*) FILTER (error IS NOT NULL) AS errors
    FROM convexity
    GROUP BY ALL
)
SELECT
    scan, k, groups, combinations::BIGINT AS combinations, inside::BIGINT AS inside, inside / combinations AS share_inside,
    -- That of a ratio of sums over groups: residuals inside - share combinations.
    sqrt(
        greatest(
            0,
            squares - 2 * (inside / combinations) * products + (inside / combinations) ** 2 * squared_combinations
        ) * groups / nullif(groups - 1, 0)
    ) / combinations AS stderr,
    whole / nullif(groups, 0) AS share_whole, errors
FROM counted
ORDER BY scan, k;
