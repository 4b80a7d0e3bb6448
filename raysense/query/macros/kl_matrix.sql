-- Kullback-Leibler divergence KL(class_a || class_b) between the paths of every two classes of a scan and split, as in Figures 2-5 of Khaitan & Banerjee (2026): nats, mean over all paths of the layer, p = (count + smoothing) / (n_observations + 2 smoothing). Class NULL is all classes together. Never negative, 0 on the diagonal; smoothing 0 gives infinity where b excludes what a does.
-- tables: significance, layers
CREATE OR REPLACE MACRO kl_matrix(layer := NULL, smoothing := 0.5) AS TABLE
SELECT k.scan_a AS scan, k.split_a AS split, k.layer, class_a, class_b, kl
FROM kl_pairs(layer := layer, smoothing := smoothing) AS k
LEFT JOIN layers AS l ON l.scan = k.scan_a AND l.layer = k.layer
ORDER BY k.scan_a, k.split_a, l.position, k.layer, class_a, class_b;
