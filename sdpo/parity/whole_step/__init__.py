"""Audit of trainers: whole updates, from scripted rollouts to the weights of the teacher."""
