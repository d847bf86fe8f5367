"""The stream on Apache Flink, by Beam's portable runner: the same graph, with a source and a sink of its own."""
