"""From candidates to served versions, and back where that was wrong. Where to find what:

- the trainer's side: exporting (which exporter), export, ranking_export; candidate: what is handed over
- the process: controller, on a site (what a publish touches) under a lease; recovery when it takes over; housekeeping
  and forgetting behind it; showing, status: what it tells; clock: whether that was set
- first tier: judging, by checks (moves: of features) or ranking_checks
- two-phase publish: publisher, readiness with probing; desired and volume: what servers load; bootstrap: version 1
- live pages: heard (from agents), live, turning, promoting; served: who had which version
- second tier: certifying, by evaluation/
- back: sending_back; switches: what operators do
- verdicts: every decision on record
"""
