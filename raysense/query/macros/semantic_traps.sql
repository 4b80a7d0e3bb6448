-- Traps in semantic maps: connected sets of grid points with score < high (4 neighbours, periodic axes closed) that fall below low somewhere and are enclosed by score >= high, that is, neither reach the border of the space nor span a whole periodic axis; of a map of a single periodic axis they take up at most half. Trap 1 of a map has the most points. Bounds are those of its grid points, the upper one beyond the range where it crosses the seam; depth is the mean score of the surrounding points minus the least score; area a fraction of the map. Maps that are not complete yet are left out; of_scan names the only scan to do.
-- tables: semantic_maps, subjects
CREATE OR REPLACE MACRO semantic_traps(low := 0.1, high := 0.5, of_scan := NULL) AS TABLE
WITH RECURSIVE maps AS MATERIALIZED (
    SELECT
        scan, shape_id, label, axes AS names, row_number() OVER (ORDER BY scan, shape_id, names)::INTEGER AS map,
        count(*) AS points, any_value(steps) AS steps
    FROM semantic_maps
    WHERE of_scan IS NULL OR scan = of_scan
    GROUP BY scan, shape_id, label, axes
    HAVING points = list_product(any_value(semantic_maps.steps))
),
scales AS MATERIALIZED (
    SELECT map, dimension, steps[dimension] AS n, coalesce(a.periodic, false) AS periodic
    FROM (SELECT *, generate_subscripts(steps, 1) AS dimension FROM maps) AS m
    LEFT JOIN axes AS a ON a.scan = m.scan AND a.axis = string_split(names, ',')[dimension]
),
cells AS MATERIALIZED (
    SELECT map, cell[1] AS x, coalesce(cell[2], 0) AS y, score, u
    FROM semantic_maps AS s JOIN maps ON maps.scan = s.scan AND maps.shape_id = s.shape_id AND names = s.axes
),
shapes AS MATERIALIZED (
    SELECT
        map, max(dimension) AS dimensions, max(n) FILTER (dimension = 1) AS nx,
        coalesce(max(n) FILTER (dimension = 2), 1) AS ny,
        bool_or(periodic) FILTER (dimension = 1) AS closed_x,
        coalesce(bool_or(periodic) FILTER (dimension = 2), false) AS closed_y
    FROM scales
    GROUP BY map
),
marked AS MATERIALIZED (
    SELECT *, x - row_number() OVER (PARTITION BY map, y ORDER BY x) AS streak FROM cells WHERE score < high
),
-- Runs of neighbouring low points along the first axis are merged instead of single points: 30 times fewer.
runs AS MATERIALIZED (
    SELECT map, y, streak, min(x) AS first, max(x) AS last, row_number() OVER (ORDER BY map, y, streak)::INTEGER AS run
    FROM marked
    GROUP BY map, y, streak
),
touching AS (
    SELECT a.run AS one, b.run AS other
    FROM runs AS a JOIN shapes USING (map)
    JOIN runs AS b ON b.map = a.map AND a.first <= b.last AND b.first <= a.last
        AND (b.y = a.y + 1 OR (closed_y AND a.y = ny - 1 AND b.y = 0))
    UNION ALL
    SELECT a.run, b.run
    FROM runs AS a JOIN shapes USING (map)
    JOIN runs AS b ON b.map = a.map AND b.y = a.y AND closed_x AND a.first = 0 AND b.last = nx - 1
),
links AS MATERIALIZED (
    SELECT one, other FROM touching UNION ALL SELECT other, one FROM touching
),
components(run, component) USING KEY (run) AS (
    SELECT run, run AS component FROM runs
    UNION
    SELECT other, min(news.component)
    FROM components AS news JOIN links ON one = news.run JOIN recurring.components AS known ON known.run = other
    GROUP BY other, known.component
    HAVING min(news.component) < known.component
),
low_cells AS MATERIALIZED (
    SELECT component, marked.* EXCLUDE (streak)
    FROM marked JOIN runs USING (map, y, streak) JOIN components USING (run)
),
-- A connected set takes up a single arc of each axis, which begins after its gap.
arcs AS MATERIALIZED (
    SELECT
        component, map, dimension, coalesce(max(place) FILTER (place - before > 1), min(place)) AS start,
        count(*) AS length
    FROM (
        SELECT *, lag(place) OVER (PARTITION BY component, dimension ORDER BY place) AS before
        FROM (
            SELECT DISTINCT component, map, 1 AS dimension, x AS place FROM low_cells
            UNION ALL
            SELECT DISTINCT component, map, 2, y FROM low_cells
        )
    )
    GROUP BY component, map, dimension
),
enclosed AS MATERIALIZED (
    SELECT *
    FROM (
        SELECT component, map, count(*) AS cells, min(score) AS min_score, min_by(u, (score, u)) AS u_min
        FROM low_cells
        GROUP BY component, map
    )
    WHERE min_score < low AND component NOT IN (
        SELECT component
        FROM arcs JOIN scales USING (map, dimension) JOIN shapes USING (map)
        WHERE length = n OR (NOT periodic AND (start = 0 OR start + length = n))
            -- On a circle, inside and outside differ by size only.
            OR (dimensions = 1 AND periodic AND 2 * length > n)
    )
),
ring AS (
    SELECT component, avg(score) AS surround
    FROM (
        SELECT DISTINCT
            component, map,
            CASE WHEN closed_x THEN (x + dx + nx) % nx ELSE x + dx END AS x,
            CASE WHEN closed_y THEN (y + dy + ny) % ny ELSE y + dy END AS y
        FROM low_cells SEMI JOIN enclosed USING (component) JOIN shapes USING (map),
            (VALUES (1, 0), (-1, 0), (0, 1), (0, -1)) AS neighbours(dx, dy)
    )
    JOIN cells USING (map, x, y)
    WHERE score >= high
    GROUP BY component
),
origins AS (
    SELECT map, dimension, min(u[dimension]) AS origin, (max(u[dimension]) - origin) / nullif(n - 1, 0) AS step, n
    FROM cells JOIN scales USING (map)
    GROUP BY map, dimension, n
),
places AS (
    SELECT
        component,
        list(origin + step * start ORDER BY dimension) AS lower,
        list(origin + step * (start + length - 1) ORDER BY dimension) AS upper,
        list(origin + step * CASE WHEN centre >= n THEN centre - n ELSE centre END ORDER BY dimension) AS centre
    FROM (
        SELECT component, map, dimension, start, length, avg(place + CASE WHEN place < start THEN n ELSE 0 END) AS centre
        FROM (
            SELECT component, map, 1 AS dimension, x AS place FROM low_cells
            UNION ALL
            SELECT component, map, 2, y FROM low_cells
        )
        SEMI JOIN enclosed USING (component)
        JOIN arcs USING (component, map, dimension)
        JOIN scales USING (map, dimension)
        GROUP BY ALL
    )
    JOIN origins USING (map, dimension)
    GROUP BY component
),
classes_of AS (
    SELECT scan, label, string_agg(DISTINCT class_name, ', ' ORDER BY class_name) AS class_name FROM subjects GROUP BY ALL
)
SELECT
    maps.scan, shape_id, maps.label, class_name, names AS axes,
    row_number() OVER (PARTITION BY map ORDER BY cells DESC, lower) AS trap,
    cells, cells / points AS area, min_score, u_min, centre, lower, upper, surround, surround - min_score AS depth
FROM enclosed
JOIN maps USING (map)
JOIN ring USING (component)
JOIN places USING (component)
LEFT JOIN classes_of ON classes_of.scan = maps.scan AND classes_of.label = maps.label
ORDER BY maps.scan, shape_id, axes, trap;
