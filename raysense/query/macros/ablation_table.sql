-- Table 3 of Khaitan & Banerjee (2026): separation and spread of the classes by their significant paths (metric paths: mean inter-class KL and mean class entropy, as in path_summary) and by the metrics of ablation_summary, for every significance scan opened together with the ablations scan that was made of it. Column scan is the significance scan for all metrics, or the ablations scan where that is opened without.
-- tables: significance, class_distances
CREATE OR REPLACE MACRO ablation_table(smoothing := 0.5) AS TABLE
WITH compared AS (
    SELECT
        scan AS ablations, split, layer, metric, separation, spread, made.spec ->> 'of' AS location
    FROM ablation_summary() JOIN scans AS made USING (scan)
),
found AS (
    SELECT
        scan, NULL AS ablations, split, layer, 'paths' AS metric, mean_inter_class_kl AS separation, mean_class_entropy AS spread
    FROM path_summary(smoothing := smoothing)
    UNION ALL BY NAME
    SELECT coalesce(base.scan, ablations) AS scan, ablations, split, layer, metric, separation, spread
    FROM compared LEFT JOIN scans AS base ON base.location = compared.location
)
SELECT scan, ablations, split, layer, metric, separation, spread
FROM found LEFT JOIN layers USING (scan, layer)
ORDER BY
    list_position(['paths', 'interactions', 'outputs', 'activations', 'energy'], metric),
    split, position NULLS LAST, layer NULLS LAST, scan, ablations;
