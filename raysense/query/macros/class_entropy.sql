-- Entropy of the paths of every class (class NULL: all classes together), as on the diagonals of the heat maps of Khaitan & Banerjee (2026): nats, mean over all paths of the layer, p = (count + smoothing) / (n_observations + 2 smoothing).
-- tables: significance, layers, classes
CREATE OR REPLACE MACRO class_entropy(layer := NULL, smoothing := 0.5) AS TABLE
SELECT c.scan, c.split, c.layer, c.class, c.class_name, c.entropy
FROM class_paths(layer := layer, smoothing := smoothing) AS c
LEFT JOIN layers AS l ON l.scan = c.scan AND l.layer = c.layer
ORDER BY c.scan, c.split, l.position, c.layer, c.class;
