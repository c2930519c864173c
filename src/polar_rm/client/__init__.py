"""Clients of reward servers; they need neither torch nor a server's packages."""

from polar_rm.client.asynchronous import AsyncRewardClient
from polar_rm.client.blocking import RewardClient
from polar_rm.client.official import RewardModelClient
from polar_rm.rewards.outcomes import Cut, Failure, Outcome, Reward, rewards

__all__ = ["AsyncRewardClient", "Cut", "Failure", "Outcome", "Reward", "RewardClient", "RewardModelClient", "rewards"]
