"""The planner: what a network costs on devices, and which mesh of them serves a goal best."""
