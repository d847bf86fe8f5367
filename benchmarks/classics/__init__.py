"""Do the learners learn what such learners are known to learn? CartPole and Pendulum, as everybody runs them.

python -m benchmarks.classics [--quick] [--rows NAME ...] [--seeds N] [--steps N] [--json FILE]
"""
