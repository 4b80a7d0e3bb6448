-- The n pixels with the largest FI in every pixel map (influence_maps): place 1 is the largest, ties go by row, then column; row and column count from 0 and give the centre of the patch. Channel NULL is all channels jointly; FI is at most fi_bound = (1 - p)/p.
-- tables: influence_maps
CREATE OR REPLACE MACRO map_peaks(n := 5) AS TABLE
WITH pixels AS (
    SELECT
        scan, sample_id, objective, scale, channel, width, fi_bound,
        unnest(fi) AS value,
        generate_subscripts(fi, 1) - 1 AS pixel
    FROM influence_maps
),
largest AS (
    SELECT
        scan, sample_id, objective, scale, channel, width, fi_bound,
        min_by({'pixel': pixel, 'fi': value}, (-value, pixel), n) AS top
    FROM pixels
    GROUP BY ALL
),
placed AS (
    SELECT * EXCLUDE (top), unnest(top, recursive := true), generate_subscripts(top, 1) AS place FROM largest
)
SELECT
    scan, sample_id, objective, scale, channel, place,
    (pixel // width)::INTEGER AS row,
    (pixel % width)::INTEGER AS column,
    fi, fi_bound
FROM placed
ORDER BY scan, sample_id, objective, scale, channel NULLS FIRST, place;
