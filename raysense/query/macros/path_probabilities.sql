-- Every path (row, column) of every class (NULL: all classes together), for small layers: in count of n_observations observations it is significant, p = count / n_observations, not smoothed.
-- tables: significance, layers
CREATE OR REPLACE MACRO path_probabilities(layer := NULL) AS TABLE
SELECT
    c.scan, c.split, c.layer, c.class, c."row", c."column", row_count + coalesce(e.count, 0) AS count, n_observations,
    (row_count + coalesce(e.count, 0)) / n_observations AS p
FROM (SELECT *, unnest(range(n_inputs))::INTEGER AS "column" FROM significance_rows(layer := layer)) AS c
LEFT JOIN significance_exceptions(layer := layer) AS e
    ON e."row" = c."row" AND e."column" = c."column" AND e.class IS NOT DISTINCT FROM c.class AND e.layer = c.layer
    AND e.split = c.split AND e.scan = c.scan
LEFT JOIN layers AS l ON l.scan = c.scan AND l.layer = c.layer
ORDER BY c.scan, c.split, l.position, c.layer, c.class, c."row", c."column";
