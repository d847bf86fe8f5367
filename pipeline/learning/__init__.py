"""From transitions to policies. Where to find what:

- the process: trainer, in it training (the deterministic middle); pretraining before it; together: several as one
- its examples: intake and ingestion (records), merging (of topics), feeding with replay or rollouts, dealing (to
  workers); held_out and holdout: sessions that nothing is learned from, by which choosing picks the seed
- what is learned, by `algorithm.kind` (learners has the table, learner what each of them is):
  - ddpg: actor_critic and parabola (networks), targets, losses
  - q_learning, dqn and its kin: grid and cells, greedy (what they share), q_losses
  - a2c, a3c, ppo: policy_gradient (what they share), policy_value (networks), policy_losses
  - drn/: a policy that chooses the items
- from features to actions: networks, tables (embeddings whose ids come and go) with shelf, actions
- steps: optimiser, masked_adam, reducing (over workers)
- what outlives the process: checkpoint, progress, resuming, rereading; past, going_back; carrying (to another config)
- what people see: metrics, summaries (TensorBoard), watching (the features); errors
"""
