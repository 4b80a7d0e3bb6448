-- Intersection over union of the boxes grown from one initial point: of two methods in a scan, or of one method in two scans. Boxes are cut to the space first, and may cross the seam of a periodic axis; clipped := false compares them as grown, ignoring periods. Diverged boxes are left out; NULL where both boxes are empty.
-- tables: regions
CREATE OR REPLACE MACRO region_iou(clipped := true) AS TABLE
WITH named AS (
    SELECT scan, axes AS names, unnest(string_split(axes, ',')) AS axis,
        generate_subscripts(string_split(axes, ','), 1) AS place
    FROM (SELECT DISTINCT scan, axes FROM regions)
),
spaces AS (
    SELECT
        named.scan, names,
        list(CASE WHEN clipped AND NOT periodic THEN low ELSE '-infinity'::DOUBLE END ORDER BY place) AS lows,
        list(CASE WHEN clipped AND NOT periodic THEN high ELSE 'infinity'::DOUBLE END ORDER BY place) AS highs,
        list(CASE WHEN clipped AND periodic THEN high - low ELSE 'infinity'::DOUBLE END ORDER BY place) AS periods
    FROM named JOIN axes AS a ON a.scan = named.scan AND a.axis = named.axis
    GROUP BY ALL
),
boxes AS (
    SELECT
        *, list_transform(ends, lambda x, i: least(x - starts[i], periods[i])) AS lengths
    FROM (
        SELECT
            regions.scan, shape_id, label, axes AS names, kind, init, u0, family, method, periods,
            list_transform(lower, lambda x, i: greatest(x, lows[i])) AS starts,
            list_transform(upper, lambda x, i: greatest(least(x, highs[i]), lower[i], lows[i])) AS ends
        FROM regions JOIN spaces ON spaces.scan = regions.scan AND spaces.names = regions.axes
        WHERE lower IS NOT NULL AND upper IS NOT NULL
    )
),
-- On a circle of circumference p, box b begins t after box a; it, or its copy one turn earlier, meets a in two pieces.
pairs AS (
    SELECT
        a.shape_id, a.label, a.names, a.kind, a.init, a.scan AS scan_a, b.scan AS scan_b,
        a.family AS family_a, a.method AS method_a, b.family AS family_b, b.method AS method_b,
        list_product(a.lengths) AS volume_a, list_product(b.lengths) AS volume_b,
        list_product(list_transform(a.lengths, lambda length, i:
            CASE WHEN isinf(a.periods[i])
            THEN greatest(0, least(a.ends[i], b.ends[i]) - greatest(a.starts[i], b.starts[i]))
            ELSE list_transform(
                [(b.starts[i] - a.starts[i]) - a.periods[i] * floor((b.starts[i] - a.starts[i]) / a.periods[i])],
                lambda t: greatest(0, least(length, t + b.lengths[i]) - t)
                    + greatest(0, least(length, t + b.lengths[i] - a.periods[i]))
            )[1] END
        )) AS shared
    FROM boxes AS a JOIN boxes AS b
        ON a.shape_id = b.shape_id AND a.label = b.label AND a.names = b.names AND a.kind = b.kind
        AND a.init = b.init AND a.u0 = b.u0
        AND ((a.scan = b.scan AND (a.family, a.method) < (b.family, b.method))
            OR (a.scan < b.scan AND a.family = b.family AND a.method = b.method))
)
SELECT
    scan_a, scan_b, shape_id, label, names AS axes, kind, init, family_a, method_a, family_b, method_b,
    shared / nullif(volume_a + volume_b - shared, 0) AS iou
FROM pairs
ORDER BY scan_a, scan_b, shape_id, kind DESC, init, family_a, method_a, family_b, method_b;
