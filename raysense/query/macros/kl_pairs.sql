-- Kullback-Leibler divergence KL(a || b) of class paths, nats, mean over the paths of a layer; what kl_matrix() and kl_between() are made of: without scans all pairs of classes of every scan, split and layer; else all splits and classes of scan_a against those of scan_b. Exact from row counts and exceptions. Class NULL is all classes together.
-- tables: significance
CREATE OR REPLACE MACRO kl_pairs(scan_a := NULL, scan_b := NULL, layer := NULL, smoothing := 0.5) AS TABLE
WITH counted AS MATERIALIZED (
    SELECT r.* RENAME (layer AS name)
    FROM significance_rows(layer := layer) AS r
    WHERE scan_a IS NULL OR r.scan IN (scan_a, scan_b)
),
-- Every distribution of a family is compared with every other one.
members AS MATERIALIZED (
    SELECT
        *, row_number() OVER (ORDER BY scan, split, name, class)::INTEGER AS member,
        dense_rank() OVER (
            ORDER BY
                CASE WHEN scan_a IS NULL THEN scan END, CASE WHEN scan_a IS NULL THEN split END, name, rows, n_inputs
        )::INTEGER AS family,
        scan_a IS NULL OR scan = scan_a AS is_a,
        scan_b IS NULL OR scan = scan_b AS is_b
    FROM (
        SELECT
            scan, split, name, class, max(n_observations) AS n_observations, count(*) AS rows, max(n_inputs) AS n_inputs
        FROM counted
        GROUP BY ALL
    )
),
bases AS MATERIALIZED (
    SELECT member, "row", m.n_inputs, row_count, bernoulli(row_count, m.n_observations, smoothing := smoothing) AS base
    FROM counted AS c
    JOIN members AS m
        ON m.scan = c.scan AND m.split = c.split AND m.name = c.name AND m.class IS NOT DISTINCT FROM c.class
),
-- At an exception every quantity is its base value plus a deviation.
deviations AS MATERIALIZED (
    SELECT
        family, path, member, "row", is_a, is_b,
        own.p - base.p AS p,
        own.log_odds - base.log_odds AS log_odds,
        own.log_rest - base.log_rest AS log_rest,
        own.p * own.log_odds - base.p * base.log_odds AS p_log_odds,
        own.possible - base.possible AS possible,
        own.rest_possible - base.rest_possible AS rest_possible
    FROM (
        SELECT
            family, e."row" * m.n_inputs::BIGINT + e."column" AS path, member, e."row", is_a, is_b, base,
            bernoulli(row_count + e.count, n_observations, smoothing := smoothing) AS own
        FROM significance_exceptions(layer := layer) AS e
        JOIN members AS m
            ON m.scan = e.scan AND m.split = e.split AND m.name = e.layer AND m.class IS NOT DISTINCT FROM e.class
        JOIN bases USING (member, "row")
        WHERE scan_a IS NULL OR e.scan IN (scan_a, scan_b)
    )
),
row_sums AS (
    SELECT
        member, "row", sum(p) AS p, sum(log_odds) AS log_odds, sum(log_rest) AS log_rest, sum(p_log_odds) AS p_log_odds,
        sum(possible) AS possible, sum(rest_possible) AS rest_possible
    FROM deviations
    GROUP BY ALL
),
summed AS MATERIALIZED (
    SELECT
        b.member, b."row", n_inputs, base,
        coalesce(s.p, 0) AS p, coalesce(s.log_odds, 0) AS log_odds, coalesce(s.possible, 0) AS possible,
        coalesce(s.rest_possible, 0) AS rest_possible,
        n_inputs * base.log_rest + coalesce(s.log_rest, 0) AS log_rest,
        n_inputs * base.p * base.log_odds + coalesce(s.p_log_odds, 0) AS p_log_odds
    FROM bases AS b LEFT JOIN row_sums AS s ON s.member = b.member AND s."row" = b."row"
),
sizes AS (
    SELECT family, count_if(is_a) AS n_a, count_if(is_b) AS n_b FROM members GROUP BY family
),
-- Paths exceptional in both a and b: a joined row costs about as much as 60 terms of a dot product, a term's place in the
-- lists as much as 1000. Paths that many classes share go into the lists, the others are joined.
shared AS MATERIALIZED (
    SELECT family, path, row_number() OVER (PARTITION BY family ORDER BY path) AS place
    FROM deviations JOIN sizes USING (family)
    GROUP BY family, path
    HAVING 60 * count_if(is_a) * count_if(is_b) > max(n_a * n_b + 500 * (n_a + n_b))
),
entries AS (
    SELECT
        member, 2 * "row" AS place,
        n_inputs * base.p + p AS x, base.log_odds AS y,
        n_inputs * base.possible + possible AS x_some, 1 - base.possible AS y_none,
        n_inputs * base.rest_possible + rest_possible AS x_rest, 1 - base.rest_possible AS y_all
    FROM summed
    UNION ALL
    SELECT
        member, 2 * "row" + 1, base.p, log_odds, base.possible, -possible, base.rest_possible, -rest_possible
    FROM summed
    UNION ALL
    SELECT
        m.member, 2 * m.rows + place, coalesce(d.p, 0), coalesce(d.log_odds, 0),
        coalesce(d.possible, 0), -coalesce(d.possible, 0), coalesce(d.rest_possible, 0), -coalesce(d.rest_possible, 0)
    FROM shared AS s JOIN members AS m ON m.family = s.family
    LEFT JOIN deviations AS d ON d.member = m.member AND d.path = s.path
),
lists AS MATERIALIZED (
    SELECT *
    FROM (
        SELECT
            member, list(x ORDER BY place) AS x, list(y ORDER BY place) AS y,
            list(x_some ORDER BY place) FILTER (smoothing = 0) AS x_some,
            list(y_none ORDER BY place) FILTER (smoothing = 0) AS y_none,
            list(x_rest ORDER BY place) FILTER (smoothing = 0) AS x_rest,
            list(y_all ORDER BY place) FILTER (smoothing = 0) AS y_all
        FROM entries
        GROUP BY member
    )
    JOIN (SELECT member, sum(log_rest) AS log_rest, sum(p_log_odds) AS p_log_odds FROM summed GROUP BY member)
    USING (member)
    JOIN members USING (member)
),
few AS MATERIALIZED (
    SELECT * FROM deviations AS d
    WHERE NOT EXISTS (FROM shared AS s WHERE s.family = d.family AND s.path = d.path)
),
joined AS MATERIALIZED (
    SELECT
        a.member AS member_a, b.member AS member_b, sum(a.p * b.log_odds) AS p_log_odds,
        sum(a.possible * b.possible + a.rest_possible * b.rest_possible) AS violations
    FROM few AS a JOIN few AS b ON b.family = a.family AND b.path = a.path
    WHERE a.is_a AND b.is_b AND a.member <> b.member
    GROUP BY ALL
),
pairs AS (
    SELECT
        a.scan AS scan_a, a.split AS split_a, b.scan AS scan_b, b.split AS split_b, a.name, a.class AS class_a,
        b.class AS class_b, a.member AS member_a, b.member AS member_b, a.rows * a.n_inputs AS paths,
        a.log_rest - b.log_rest + a.p_log_odds - list_dot_product(a.x, b.y) AS divergence,
        CASE WHEN smoothing = 0 THEN list_dot_product(a.x_some, b.y_none) + list_dot_product(a.x_rest, b.y_all) END
            AS violations
    -- A hash join would copy the lists for every pair.
    FROM lists AS a JOIN lists AS b ON a.family - b.family = 0
    WHERE a.is_a AND b.is_b
)
SELECT
    p.scan_a, split_a, p.scan_b, split_b, name AS layer, class_a, class_b,
    CASE
        WHEN member_a = member_b THEN 0
        WHEN smoothing = 0 AND p.violations - coalesce(j.violations, 0) > 0.5 THEN 'inf'::DOUBLE
        ELSE greatest(0, (divergence - coalesce(j.p_log_odds, 0)) / paths)
    END AS kl
FROM pairs AS p LEFT JOIN joined AS j USING (member_a, member_b);
