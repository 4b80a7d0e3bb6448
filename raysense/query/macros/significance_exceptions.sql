-- Counts of single paths added up over units: path (row, column) is significant in count observations of a class (NULL: all classes together) besides row_count of significance_rows(). Paths that are not listed have none; of the layer named, or of every layer.
-- tables: significance
CREATE OR REPLACE MACRO significance_exceptions(layer := NULL) AS TABLE
SELECT e.scan, e.split, e.layer, e.class, e."row", e."column", sum(e.count)::BIGINT AS count
FROM (
    SELECT
        s.scan, s.split, s.layer, s.class, s."row",
        -- Dense counts have no columns.
        unnest(coalesce(s.exception_columns, range(len(s.exception_counts))::INTEGER[])) AS "column",
        unnest(s.exception_counts) AS count
    FROM significance AS s
    WHERE layer IS NULL OR s.layer = layer
) AS e
WHERE e.count > 0
GROUP BY GROUPING SETS (
    (e.scan, e.split, e.layer, e.class, e."row", e."column"), (e.scan, e.split, e.layer, e."row", e."column")
);
