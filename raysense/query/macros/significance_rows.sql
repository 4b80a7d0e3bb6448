-- Counts of whole rows added up over units: of row_count of n_observations observations of a class (NULL: all classes together) every path (row, column) of a layer's row is significant; of the layer named, or of every layer.
-- tables: significance
CREATE OR REPLACE MACRO significance_rows(layer := NULL) AS TABLE
SELECT
    s.scan, s.split, s.layer, s.class, s."row", max(s.n_inputs) AS n_inputs,
    sum(s.n_samples)::BIGINT AS n_samples, sum(s.n_observations)::BIGINT AS n_observations,
    sum(s.row_count)::BIGINT AS row_count
FROM significance AS s
WHERE layer IS NULL OR s.layer = layer
GROUP BY GROUPING SETS ((s.scan, s.split, s.layer, s.class, s."row"), (s.scan, s.split, s.layer, s."row"));
