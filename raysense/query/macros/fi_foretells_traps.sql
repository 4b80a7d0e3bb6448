-- Does FI of the semantic parameters foretell the traps? Of the grid points with score >= high those are events from which the score falls below low within the given number of steps along an axis, either way. roc_area says how well a measure tells them from the others (ties count half), with a standard error over shapes (Obuchowski 1997); measure score is the baseline: 1 - score. rank_correlation is Spearman's between the measure and the slope |d score / d u| along the axis, over the same points of each map, averaged over the maps. Maps without FI are left out.
-- tables: semantic_maps
CREATE OR REPLACE MACRO fi_foretells_traps(low := 0.1, high := 0.5, steps := 3) AS TABLE
WITH lines AS (
    SELECT
        s.* EXCLUDE (grid, cell), coalesce(periodic, false) AS closed, grid[dimension] AS n, cell[dimension] AS place,
        list_transform(cell, lambda c, i: CASE WHEN i = dimension THEN 0 ELSE c END) AS line
    FROM (
        SELECT
            scan, shape_id, axes AS names, unnest(string_split(axes, ',')) AS axis,
            generate_subscripts(string_split(axes, ','), 1) AS dimension,
            semantic_maps.steps AS grid, cell, score, fi, fi_bound, jacobian_norm
        FROM semantic_maps
        WHERE fi IS NOT NULL
    ) AS s
    LEFT JOIN axes AS a ON a.scan = s.scan AND a.axis = s.axis
),
-- A closed line is continued by its other end, as far as the windows below reach.
continued AS (
    SELECT *, turn
    FROM lines, (VALUES (-1), (0), (1)) AS turns(turn)
    WHERE turn = 0
        OR (closed AND turn = -1 AND place >= n - greatest(steps, 1))
        OR (closed AND turn = 1 AND place < greatest(steps, 1))
),
seen AS (
    SELECT
        * EXCLUDE (place, line, closed, n),
        min(score) OVER (along RANGE BETWEEN steps PRECEDING AND steps FOLLOWING) AS least,
        abs(
            any_value(score) OVER (along RANGE BETWEEN 1 FOLLOWING AND 1 FOLLOWING)
            - any_value(score) OVER (along RANGE BETWEEN 1 PRECEDING AND 1 PRECEDING)
        ) AS slope
    FROM continued
    WINDOW along AS (PARTITION BY scan, shape_id, names, dimension, line ORDER BY place + turn * n)
),
measured AS MATERIALIZED (
    UNPIVOT (
        SELECT
            scan, shape_id, names, axis, dimension, slope, score >= high AS robust, least < low AS event,
            1 - score AS score, fi, fi_bound, jacobian_norm
        FROM seen
        WHERE turn = 0
    )
    ON score, fi, fi_bound, jacobian_norm INTO NAME measure VALUE value
),
placed AS (
    SELECT
        scan, shape_id, names, axis, dimension, measure, event,
        (ranked - own) / count(*) FILTER (event) OVER every AS events_below,
        (ranked - own) / count(*) FILTER (NOT event) OVER every AS others_below
    FROM (
        SELECT
            *,
            rank() OVER (every ORDER BY value) + (count(*) OVER (every_value) - 1) / 2 AS ranked,
            rank() OVER (own ORDER BY value) + (count(*) OVER (own_value) - 1) / 2 AS own
        FROM measured
        WHERE robust
        WINDOW
            every AS (PARTITION BY scan, names, dimension, measure),
            every_value AS (PARTITION BY scan, names, dimension, measure, value),
            own AS (PARTITION BY scan, names, dimension, measure, event),
            own_value AS (PARTITION BY scan, names, dimension, measure, event, value)
    )
    WINDOW every AS (PARTITION BY scan, names, dimension, measure)
),
areas AS (
    SELECT
        scan, names, axis, dimension, measure, count(*) AS n_points, count_if(event) AS n_events,
        avg(others_below) FILTER (event) AS area
    FROM placed
    GROUP BY ALL
),
clusters AS (
    SELECT
        scan, names, dimension, measure, shape_id, area, n_events, n_points - n_events AS n_others,
        count_if(event) AS events, count_if(NOT event) AS others,
        coalesce(sum(others_below - area) FILTER (event), 0) AS event_sum,
        coalesce(sum(1 - events_below - area) FILTER (NOT event), 0) AS other_sum
    FROM placed JOIN areas USING (scan, names, axis, dimension, measure)
    GROUP BY ALL
),
errors AS (
    SELECT
        scan, names, dimension, measure,
        sqrt(greatest(0,
            count_if(events > 0) / nullif(count_if(events > 0) - 1, 0) * sum((event_sum / n_events) ** 2)
            + count_if(others > 0) / nullif(count_if(others > 0) - 1, 0) * sum((other_sum / n_others) ** 2)
            + 2 * count(*) / nullif(count(*) - 1, 0) * sum(event_sum / n_events * other_sum / n_others)
        )) AS area_stderr
    FROM clusters
    WHERE n_events > 0 AND n_others > 0
    GROUP BY ALL
),
correlations AS (
    SELECT
        scan, names, dimension, measure,
        avg(spearman) AS rank_correlation, stddev_samp(spearman) / sqrt(count(spearman)) AS rank_correlation_stderr
    FROM (
        SELECT
            scan, shape_id, names, dimension, measure,
            CASE WHEN stddev_pop(value_rank) > 0 AND stddev_pop(slope_rank) > 0
                THEN corr(value_rank, slope_rank) END AS spearman
        FROM (
            SELECT
                *,
                rank() OVER (each ORDER BY value) + (count(*) OVER (each_value) - 1) / 2 AS value_rank,
                rank() OVER (each ORDER BY slope) + (count(*) OVER (each_slope) - 1) / 2 AS slope_rank
            FROM measured
            WHERE robust AND slope IS NOT NULL
            WINDOW
                each AS (PARTITION BY scan, shape_id, names, dimension, measure),
                each_value AS (PARTITION BY scan, shape_id, names, dimension, measure, value),
                each_slope AS (PARTITION BY scan, shape_id, names, dimension, measure, slope)
        )
        GROUP BY ALL
    )
    GROUP BY ALL
),
counts AS (
    SELECT scan, names, axis, dimension, measure, count(DISTINCT shape_id) AS n_maps FROM measured GROUP BY ALL
)
SELECT
    c.scan, c.names AS axes, c.axis, c.measure, n_maps, coalesce(n_points, 0) AS n_points,
    coalesce(n_events, 0) AS n_events, CASE WHEN n_events < n_points THEN area END AS roc_area,
    area_stderr AS roc_stderr, rank_correlation, rank_correlation_stderr
FROM counts AS c
LEFT JOIN areas USING (scan, names, dimension, measure)
LEFT JOIN errors USING (scan, names, dimension, measure)
LEFT JOIN correlations USING (scan, names, dimension, measure)
ORDER BY c.scan, c.names, c.dimension, c.measure;
