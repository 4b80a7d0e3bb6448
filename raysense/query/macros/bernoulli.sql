-- The distribution of a significant path as a struct (a scalar function): p = (count + smoothing) / (n_observations + 2 smoothing), log_odds = log(p / (1 - p)), log_rest = log(1 - p); possible is 0 where p = 0 and else 1, rest_possible is 0 where p = 1, and there log 0 is taken as 0. Its entropy is -(p log_odds + log_rest) nats.
-- tables: significance
CREATE OR REPLACE MACRO bernoulli(count, n_observations, smoothing := 0.5) AS
list_transform(
    [{
        'yes': CASE WHEN smoothing >= 0 AND smoothing < 1e300 THEN (count + smoothing)::DOUBLE ELSE error('smoothing must be a number, 0 or more') END,
        'no': (n_observations - count + smoothing)::DOUBLE
    }],
    lambda n: {
        'p': n.yes / (n.yes + n.no),
        'log_odds': CASE WHEN n.yes > 0 AND n.no > 0 THEN ln(n.yes / n.no) ELSE 0 END,
        'log_rest': CASE WHEN n.no > 0 THEN ln(n.no / (n.yes + n.no)) ELSE 0 END,
        'possible': (n.yes > 0)::DOUBLE,
        'rest_possible': (n.no > 0)::DOUBLE
    }
)[1];
