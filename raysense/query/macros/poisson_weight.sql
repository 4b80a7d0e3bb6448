-- How often a sample (or a shape) is drawn in one replicate of a Poisson bootstrap (a scalar function): 0, 1, 2, ... with mean and variance 1, equal for equal arguments in one version of DuckDB. outlier_areas() and srvr() weigh samples and shapes with it.
-- tables: units
CREATE OR REPLACE MACRO poisson_weight(sample_id, replicate, seed := 0) AS
-- The inverse distribution function at 53 random bits. Hashed twice: DuckDB joins the hashes of several arguments by an
-- exclusive or, which would make replicates depend on each other. Weights above 10 have a probability of 1e-8.
list_transform(
    [(hash(hash(sample_id, replicate, seed)) >> 11)::DOUBLE / 9007199254740992],
    lambda u:
        (u >= 0.36787944117144233)::INTEGER + (u >= 0.7357588823428847)::INTEGER + (u >= 0.9196986029286058)::INTEGER
        + (u >= 0.9810118431238463)::INTEGER + (u >= 0.9963401531726563)::INTEGER + (u >= 0.9994058151824183)::INTEGER
        + (u >= 0.999916758850712)::INTEGER + (u >= 0.9999897508033253)::INTEGER + (u >= 0.999998874797402)::INTEGER
        + (u >= 0.9999998885745216)::INTEGER
)[1];
