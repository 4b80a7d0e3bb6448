-- Table 2 of Hamdi & Ghanem (2020): semantic robust volume ratio of every network and method over all classes, as fractions (the paper prints percent): their formula (srvr), boxes cut to the space (clipped), and only boxes that meet Eq. (2) (feasible_srvr), with bootstrap standard errors. Columns are explained at srvr_by_class(), of which these are the rows of all classes.
-- tables: regions, subjects
CREATE OR REPLACE MACRO srvr(replicates := 200, seed := 0) AS TABLE
SELECT * EXCLUDE (label, class_name)
FROM srvr_by_class(replicates := replicates, seed := seed)
WHERE label IS NULL
ORDER BY scan, kind DESC, family, method;
