-- What detection_roc() and detection_areas() compare, one row a score: for each attack and scale the samples perturbed so, and again the samples as they are (perturbed false). Higher is more suspicious: rho of Algorithm 2, 1 - max_softmax (measure max_softmax), energy. Scores that are not finite are left out.
-- tables: detections, samples
CREATE OR REPLACE MACRO detection_scores() AS TABLE
WITH scored AS (
    UNPIVOT (
        SELECT scan, split, sample_id, attack, scale, perturbed, rho, 1 - max_softmax AS max_softmax, energy
        FROM detections JOIN samples USING (scan, sample_id)
    )
    ON rho, max_softmax, energy INTO NAME measure VALUE score
)
SELECT scan, split, attack, scale, measure, sample_id, true AS perturbed, score
FROM scored
WHERE attack <> 'none' AND (perturbed OR attack <> 'deepfool') AND isfinite(score)
UNION ALL
SELECT scan, split, attack, scale, measure, sample_id, false, score
FROM (SELECT * EXCLUDE (attack, scale, perturbed) FROM scored WHERE attack = 'none' AND isfinite(score))
JOIN (SELECT DISTINCT scan, split, attack, scale, measure FROM scored WHERE attack <> 'none')
    USING (scan, split, measure);
