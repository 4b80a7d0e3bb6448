-- KL(class_a of scan_a || class_b of scan_b), as kl_matrix() within a scan: all classes and splits of one scan against those of another with the same layers, such as in- and out-of-distribution data (Figure 6 of Khaitan & Banerjee 2026). Layers whose shapes differ are left out. The scans must have the same threshold and positions, which view scans has in spec.
-- tables: significance, layers
CREATE OR REPLACE MACRO kl_between(scan_a, scan_b, layer := NULL, smoothing := 0.5) AS TABLE
SELECT k.scan_a, k.split_a, k.scan_b, k.split_b, k.layer, class_a, class_b, kl
FROM kl_pairs(scan_a := scan_a, scan_b := scan_b, layer := layer, smoothing := smoothing) AS k
LEFT JOIN layers AS l ON l.scan = k.scan_a AND l.layer = k.layer
WHERE scan_a IS NOT NULL AND scan_b IS NOT NULL
ORDER BY k.split_a, k.split_b, l.position, k.layer, class_a, class_b;
