"""What every layer does with bad input: a table of the tests that show it, and the tests that stand nowhere else.

`TABLE` has 26 kinds of bad input. For each it names, by layer, the tests that show that nothing crashes, hangs, is
broadcast or turns into NaN unsaid. A layer without an entry has no such input. A test below holds the names to what
exists, so that the table cannot rot.
"""

from __future__ import annotations

import ast
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import OPTIONS, A, B, O, assert_states_equal, make_config, random_batch, random_noise, random_replay
from test_fused_threads import allocated_bytes
from torch import Tensor

from sacfast import _C, SAC, ReplayBuffer, _ext, cli, collect, engines, fused, memory, networks, ops
from sacfast.fused import FusedLearner
from sacfast.ops.tanh_gaussian import tanh_gaussian_log_prob_reference
from sacfast.policy import Policy
from sacfast.reference import ReferenceLearner
from sacfast.types import Batch

ROOT = Path(__file__).resolve().parents[1]

HERE = "test_bad_inputs.py::"
RSAMPLE, TWIN_Q = "ops/test_tanh_gaussian.py::", "ops/test_twin_q.py::"
POLYAK, NOISE = "ops/test_polyak.py::", "ops/test_noise.py::"
CATEGORICAL, QUANTILE = "ops/test_categorical.py::", "ops/test_quantile.py::"
ADAM, MOMENTS = "ops/test_adam_polyak.py::", "ops/test_moments.py::"
TRANSFORMS, OTHER_TORCH = "ops/test_transforms.py::", "ops/test_other_torch.py::"
STATE, THREADS = "test_fused_state.py::", "test_fused_threads.py::"
FUSED, REFERENCE, REPLAY = "test_fused.py::", "test_reference.py::", "test_replay.py::"
ENVS, TRAINER, CLI = "test_envs.py::", "test_trainer.py::", "test_cli.py::"
CHECKPOINT, CONFIG, POLICY = "test_checkpoint.py::", "test_config.py::", "test_policy.py::"
OPTIONAL = "test_optional_packages.py::"
ENGINES, NATIVE = "test_engines.py::", "test_native.py::"
MEMORY, INTERRUPT, RUN_FILES = "test_memory.py::", "test_interrupt.py::", "test_run_files.py::"

TABLE: dict[str, dict[str, list[str]]] = {
    "fp16, int or complex where unsupported": {
        "ops": [
            HERE + "test_ops_refuse_a_dtype",
            RSAMPLE + "TestBadInput::test_message_names_the_argument",
            TWIN_Q + "TestBadInput::test_message_names_the_argument",
            POLYAK + "TestBadInput::test_message_names_the_argument",
            CATEGORICAL + "TestBadInput::test_message_names_the_argument",
            QUANTILE + "TestBadInput::test_message_names_the_argument",
            CATEGORICAL + "TestBadInput::test_message_of_the_loss",
            QUANTILE + "TestBadInput::test_message_of_the_loss",
            ADAM + "TestBadInput::test_message_names_the_argument",
            MOMENTS + "TestBadInput::test_message_names_the_argument",
            MOMENTS + "TestBadInput::test_message_of_normalize",
        ],
        "learner": [
            HERE + "test_a_batch_that_does_not_fit_is_refused",
            HERE + "test_noise_that_does_not_fit_is_refused",
            STATE + "test_other_rows_are_refused",
            STATE + "test_what_the_backend_does_not_have_is_refused",
        ],
        "replay": [REPLAY + "test_bad_fields_are_refused_and_leave_the_ring_alone"],
        "trainer": [POLICY + "test_act_refuses", ENVS + "test_a_bad_action_is_refused_before_it_is_sent"],
    },
    "transposed, offset and stride-0 views": {
        "ops": [
            RSAMPLE + "TestLayouts::test_views_equal_their_copies",
            RSAMPLE + "TestLayouts::test_noncontiguous_gradients",
            HERE + "test_log_prob_takes_any_view",
            TWIN_Q + "TestLayouts::test_views_equal_their_copies",
            POLYAK + "TestLayouts::test_layouts",
            POLYAK + "TestSharedMemory::test_expanded_target",
            CATEGORICAL + "TestLayouts::test_views_equal_their_copies",
            QUANTILE + "TestTruncatedTarget::test_layouts",
            ADAM + "TestLayouts::test_any_layout_of_any_list",
            ADAM + "TestLayouts::test_an_expanded_tensor_is_not_written_to",
            MOMENTS + "TestLayouts::test_views_equal_their_copies",
            MOMENTS + "TestLayouts::test_moments_of_any_layout",
            MOMENTS + "TestLayouts::test_an_expanded_tensor_is_not_written_to",
        ],
        "learner": [
            HERE + "test_a_batch_of_views_is_that_of_their_copies",
            HERE + "test_rows_with_holes_are_refused",
            STATE + "test_noise_may_be_any_view",
        ],
        "replay": [
            HERE + "test_replay_stores_any_view",
            REPLAY + "test_strided_fields_and_tensors_with_gradients_are_stored",
        ],
        "trainer": [POLICY + "test_any_layout_of_observations_is_accepted"],
    },
    "batch 0": {
        "ops": [
            RSAMPLE + "TestLayouts::test_empty",
            HERE + "test_log_prob_of_nothing",
            TWIN_Q + "TestAgainstFloat64::test_all_sizes_and_coefficients",
            POLYAK + "TestLists::test_all_empty",
            CATEGORICAL + "TestTargetAgainstFloat64::test_all_sizes_and_coefficients",
            CATEGORICAL + "TestCrossEntropy::test_loss_and_gradient",
            QUANTILE + "TestTruncatedTarget::test_all_sizes_and_coefficients",
            QUANTILE + "TestHuber::test_loss_and_gradient",
            ADAM + "TestFormula::test_lists_of_odd_sizes",
            MOMENTS + "TestUpdate::test_an_empty_batch_changes_nothing",
            MOMENTS + "TestNormalize::test_all_sizes",
        ],
        "learner": [HERE + "test_a_batch_that_does_not_fit_is_refused", STATE + "test_no_updates_change_nothing"],
        "replay": [REPLAY + "test_adding_nothing_changes_nothing", REPLAY + "test_the_batch_size_is_checked"],
        "trainer": [TRAINER + "test_a_run_has_at_least_one_transition", CONFIG + "test_sac_config_refuses"],
        "cli": [HERE + "test_the_command_refuses_in_one_line"],
    },
    "batch 1, size 1, sizes that are no multiple of 8": {
        "ops": [
            RSAMPLE + "TestAgainstFloat64::test_all_shapes_and_boundings",
            RSAMPLE + "TestAgainstFloat64::test_log_prob",
            TWIN_Q + "TestAgainstFloat64::test_all_sizes_and_coefficients",
            POLYAK + "TestLists::test_lists",
            MOMENTS + "TestUpdate::test_all_sizes",
        ],
        "learner": [FUSED + "test_any_size", FUSED + "test_large_and_odd_sizes"],
        "replay": [REPLAY + "test_the_ring_holds_what_a_list_would_hold"],
    },
    "shape mismatch": {
        "ops": [
            RSAMPLE + "TestBadInput::test_message_names_the_argument",
            RSAMPLE + "TestBadInput::test_log_prob",
            TWIN_Q + "TestBadInput::test_mixing_b_and_b_1",
            POLYAK + "TestBadInput::test_message_names_the_argument",
            CATEGORICAL + "TestBadInput::test_message_names_the_argument",
            QUANTILE + "TestBadInput::test_message_names_the_argument",
            CATEGORICAL + "TestBadInput::test_message_of_the_loss",
            QUANTILE + "TestBadInput::test_message_of_the_loss",
            ADAM + "TestBadInput::test_message_names_the_argument",
            MOMENTS + "TestBadInput::test_message_names_the_argument",
            MOMENTS + "TestBadInput::test_message_of_normalize",
        ],
        "learner": [
            HERE + "test_a_batch_that_does_not_fit_is_refused",
            HERE + "test_noise_that_does_not_fit_is_refused",
            HERE + "test_row_numbers_that_do_not_fit_are_refused",
            STATE + "test_a_buffer_of_other_sizes_is_refused",
            STATE + "test_a_refused_state_changes_nothing",
            REFERENCE + "test_a_refused_state_changes_nothing",
        ],
        "replay": [
            REPLAY + "test_bad_fields_are_refused_and_leave_the_ring_alone",
            REPLAY + "test_a_wrong_state_is_refused_and_changes_nothing",
        ],
        "trainer": [
            TRAINER + "test_predict_refuses_other_observations",
            TRAINER + "test_predict_refuses_what_fits_no_form",
            POLICY + "test_act_refuses",
        ],
    },
    "mixed devices": {
        "ops": [
            HERE + "test_ops_refuse_mixed_devices",
            RSAMPLE + "TestBadInput::test_mixed_devices",
            TWIN_Q + "TestBadInput::test_mixed_devices",
            POLYAK + "TestBadInput::test_mixed_devices",
        ],
        "learner": [
            HERE + "test_a_batch_that_does_not_fit_is_refused",
            HERE + "test_noise_that_does_not_fit_is_refused",
            STATE + "test_other_rows_are_refused",
        ],
        "replay": [REPLAY + "test_a_tensor_on_another_device_is_refused"],
        "trainer": [TRAINER + "test_cuda_is_never_replaced_by_the_cpu_unsaid"],
        "cli": [CLI + "test_a_gpu_that_is_not_there_is_one_line"],
    },
    "side stream": {
        "ops": [HERE + "test_ops_on_a_side_stream"],
        "learner": [
            HERE + "test_the_reference_on_a_side_stream",
            ENGINES + "test_what_is_asked_for_on_another_stream_is_queued_there",
            NATIVE + "test_the_gpu_s_engine_on_a_stand_in_for_the_cuda_runtime",
        ],
    },
    "more than 2^31 elements": {
        "ops": [HERE + "test_ops_reach_beyond_2_31_elements", HERE + "test_ops_count_beyond_2_31_elements"],
        "learner": [HERE + "test_rows_beyond_2_31_elements_are_stored_sampled_and_learned_from"],
        "replay": [HERE + "test_rows_beyond_2_31_elements_are_stored_sampled_and_learned_from"],
    },
    "NaN or infinity in an input": {
        "ops": [
            RSAMPLE + "TestCitizen::test_nan_and_infinity_propagate",
            HERE + "test_log_prob_passes_nan_on",
            HERE + "test_bounds_that_make_nan_are_refused",
            TWIN_Q + "TestNotFinite::test_nan_in_any_input_reaches_its_sample_only",
            TWIN_Q + "TestNotFinite::test_nan_is_not_hidden_by_the_other_critic",
            POLYAK + "TestFormula::test_nan_and_infinity_propagate",
            CATEGORICAL + "TestTargetEdges::test_a_nan_makes_its_whole_row_nan_and_no_other",
            CATEGORICAL + "TestTargetEdges::test_all_mass_at_an_end",
            CATEGORICAL + "TestCrossEntropy::test_nan_reaches_its_row_only",
            QUANTILE + "TestTruncatedTarget::test_a_nan_makes_its_whole_row_nan_and_no_other",
            QUANTILE + "TestHuber::test_nan_and_infinity_are_those_of_float64",
            ADAM + "TestFormula::test_nan_and_infinity_are_those_of_plain_torch",
            MOMENTS + "TestUpdate::test_nan_and_infinity_are_those_of_all_samples_at_once",
            MOMENTS + "TestNormalize::test_not_finite_and_degenerate_are_those_of_float64",
        ],
        "learner": [STATE + "test_a_batch_that_is_not_finite", HERE + "test_the_reference_takes_on_no_bad_number"],
        "replay": [REPLAY + "test_values_from_the_host_that_no_transition_has_are_refused"],
        "trainer": [
            TRAINER + "test_a_number_that_is_not_finite_stops_the_run",
            TRAINER + "test_predict_refuses_other_observations",
            ENVS + "test_a_non_finite_value_is_a_fault_that_names_its_place",
        ],
        "cli": [CLI + "test_a_faulty_environment_fails_the_command_and_keeps_what_was_learned"],
    },
    "pre-tanh of +-20 and extreme log-std": {
        "ops": [
            RSAMPLE + "TestAgainstFloat64::test_saturated_and_extreme",
            RSAMPLE + "TestAgainstFloat64::test_gradient_where_the_usual_epsilon_vanishes",
            HERE + "test_log_prob_of_extremes",
        ],
        "learner": [HERE + "test_a_policy_of_extremes_is_learned_from"],
    },
    "requires_grad on reward or target": {
        "ops": [
            TWIN_Q + "TestBadInput::test_requires_grad_where_no_gradient_is_defined",
            RSAMPLE + "TestBadInput::test_message_names_the_argument",
            POLYAK + "TestAutograd::test_leaves_that_require_grad",
            POLYAK + "TestAutograd::test_target_that_autograd_records_is_refused",
            CATEGORICAL + "TestBadInput::test_gradients_and_tangents_are_refused",
            QUANTILE + "TestBadInput::test_gradients_and_tangents_are_refused",
            CATEGORICAL + "TestBadInput::test_a_target_that_requires_grad_is_refused",
            QUANTILE + "TestBadInput::test_a_target_that_requires_grad_is_refused",
            ADAM + "TestAutograd::test_leaves_that_require_grad",
            ADAM + "TestAutograd::test_results_that_autograd_records_are_refused",
            MOMENTS + "TestAutograd::test_nothing_is_recorded",
            MOMENTS + "TestAutograd::test_results_that_autograd_records_are_refused",
            MOMENTS + "TestAutograd::test_moments_take_no_gradient",
        ],
        "learner": [
            HERE + "test_a_batch_that_does_not_fit_is_refused",
            HERE + "test_noise_that_does_not_fit_is_refused",
        ],
        "replay": [REPLAY + "test_strided_fields_and_tensors_with_gradients_are_stored"],
    },
    "second derivative, tangent, vmap": {
        "ops": [
            TRANSFORMS + "TestDerivatives::test_second",
            TRANSFORMS + "TestDerivatives::test_shapes_are_checked_with_tangents_too",
            TRANSFORMS + "TestVmap::test_shapes_never_broadcast_in_the_target",
            TRANSFORMS + "TestPolyak::test_shapes_that_do_not_fit_are_refused",
            ADAM + "TestAutograd::test_tangents_are_refused",
            ADAM + "TestPyTorchCitizen::test_one_place_for_all_calls_of_vmap_is_refused",
            MOMENTS + "TestAutograd::test_tangents_are_refused",
            MOMENTS + "TestPyTorchCitizen::test_vmap_of_the_update",
        ],
    },
    "output that aliases an input": {
        "ops": [
            HERE + "test_results_share_memory_with_nothing",
            TWIN_Q + "TestLayouts::test_result_is_new_and_dense",
            POLYAK + "TestSharedMemory::test_overlaps_are_refused_before_anything_changes",
            MOMENTS + "TestLayouts::test_shared_memory_is_refused_before_anything_changes",
        ],
        "learner": [
            STATE + "test_a_state_is_a_copy",
            REFERENCE + "test_a_state_is_a_copy",
            HERE + "test_a_native_engine_writes_to_no_read_only_array",
        ],
        "replay": [
            HERE + "test_replay_stores_views_of_its_own_rows",
            REPLAY + "test_stored_transitions_are_copies",
            REPLAY + "test_a_sample_is_not_changed_by_later_additions",
        ],
        "trainer": [ENVS + "test_results_are_not_overwritten_by_later_steps"],
    },
    "target network that shares storage with the online one": {
        "ops": [
            POLYAK + "TestSharedMemory::test_overlaps_are_refused_before_anything_changes",
            POLYAK + "TestSharedMemory::test_one_array_wrapped_twice",
            ADAM + "TestLayouts::test_shared_memory_is_refused_before_anything_changes",
        ],
        "learner": [HERE + "test_targets_never_share_storage", HERE + "test_a_state_whose_tensors_are_one"],
    },
    "in-place edit between forward and backward": {
        "ops": [
            HERE + "test_any_edit_of_what_a_gradient_needs_is_noticed",
            HERE + "test_an_edit_of_what_no_gradient_needs_changes_nothing",
            POLYAK + "TestAutograd::test_edit_between_forward_and_backward_is_noticed",
            CATEGORICAL + "TestCrossEntropy::test_edit_between_forward_and_backward_is_noticed",
            QUANTILE + "TestHuber::test_edit_between_forward_and_backward_is_noticed",
            ADAM + "TestAutograd::test_autograd_notices_the_edit",
            MOMENTS + "TestAutograd::test_autograd_notices_the_edit",
            MOMENTS + "TestAutograd::test_edit_between_forward_and_backward_is_noticed",
        ],
    },
    "autocast, inference_mode, compile, graph capture": {
        "ops": [
            RSAMPLE + "TestCitizen::test_autocast_computes_in_float32",
            RSAMPLE + "TestCitizen::test_inference_mode",
            RSAMPLE + "TestCitizen::test_compile_fullgraph",
            RSAMPLE + "TestCitizen::test_cuda_graph_draws_new_noise_at_each_replay",
            TWIN_Q + "TestPyTorchCitizen::test_autocast_computes_in_float32",
            TWIN_Q + "TestPyTorchCitizen::test_inference_mode",
            TWIN_Q + "TestPyTorchCitizen::test_compile_without_graph_breaks",
            HERE + "test_twin_q_target_in_a_cuda_graph",
            POLYAK + "TestPyTorchCitizen::test_inference_mode",
            POLYAK + "TestPyTorchCitizen::test_compile_without_graph_breaks",
            POLYAK + "TestPyTorchCitizen::test_cuda_graph",
            CATEGORICAL + "TestPyTorchCitizen::test_autocast_computes_in_float32",
            QUANTILE + "TestPyTorchCitizen::test_autocast_computes_in_float32",
            CATEGORICAL + "TestPyTorchCitizen::test_inference_mode",
            QUANTILE + "TestPyTorchCitizen::test_inference_mode",
            CATEGORICAL + "TestPyTorchCitizen::test_compile_without_graph_breaks",
            QUANTILE + "TestPyTorchCitizen::test_compile_without_graph_breaks",
            ADAM + "TestPyTorchCitizen::test_inference_tensors",
            ADAM + "TestPyTorchCitizen::test_compile_without_graph_breaks",
            ADAM + "TestPyTorchCitizen::test_cuda_graph",
            MOMENTS + "TestPyTorchCitizen::test_autocast_computes_in_float32",
            MOMENTS + "TestPyTorchCitizen::test_inference_mode",
            MOMENTS + "TestPyTorchCitizen::test_compile_without_graph_breaks",
            MOMENTS + "TestPyTorchCitizen::test_cuda_graph",
        ],
        "learner": [
            HERE + "test_the_callers_mode_does_not_reach_into_an_update",
            REFERENCE + "test_captured_updates_equal_eager_ones",
        ],
        "trainer": [HERE + "test_the_callers_mode_does_not_reach_into_a_run"],
    },
    "the same seed twice": {
        "ops": [
            NOISE + "TestTorchGenerator::test_the_same_seed_gives_the_same_noise",
            NOISE + "TestStreams::test_a_saved_state_replays",
        ],
        "learner": [STATE + "test_runs_depend_on_the_seed_alone", REFERENCE + "test_runs_depend_on_the_seed_only"],
        "replay": [REPLAY + "test_a_restored_buffer_has_the_same_future"],
        "trainer": [TRAINER + "test_the_same_seed_gives_bitwise_the_same_run"],
    },
    "two Python threads": {
        "ops": [
            HERE + "test_threads_that_share_a_state_draw_different_noise",
            NOISE + "TestThreads::test_a_state_for_each_thread",
            NOISE + "TestThreads::test_a_generator_shared_by_threads_gives_every_call_its_own_noise",
        ],
        "learner": [
            THREADS + "test_two_learners_work_at_once",
            THREADS + "test_a_learner_refuses_a_second_thread_and_survives_it",
            HERE + "test_a_second_thread_is_refused_whatever_it_asks",
            "test_learner.py::test_reads_of_another_thread_do_not_disturb_updates",
            "test_learner.py::test_who_would_wait_for_ever_is_refused",
        ],
        "replay": [HERE + "test_threads_may_share_a_replay_buffer"],
        "trainer": [HERE + "test_two_runs_in_two_threads"],
    },
    "fork after start": {
        "ops": [HERE + "test_after_a_fork"],
        "learner": [
            HERE + "test_after_a_fork",
            THREADS + "test_a_forked_process_is_refused_and_ends_and_its_parent_goes_on",
        ],
        "trainer": [HERE + "test_after_a_fork", ENVS + "test_stepping_after_a_fork_is_refused"],
    },
    "out of memory": {
        "ops": [HERE + "test_an_op_without_memory_changes_nothing"],
        "learner": [
            HERE + "test_a_learner_that_cannot_fit_is_refused",
            HERE + "test_a_learner_that_does_not_fit_after_all_says_so",
            ENGINES + "test_work_that_the_gpu_refuses_is_an_error_and_what_was_queued_before_counts",
            HERE + "test_what_an_engine_is_said_to_take_is_what_it_takes",
            HERE + "test_a_native_engine_refuses_sizes_that_no_memory_has",
            HERE + "test_a_native_engine_refuses_sizes_whose_sum_overflows",
            MEMORY + "test_an_address_space_limit_counts",
        ],
        "trainer": [TRAINER + "test_another_failure_is_recorded_too"],
        "cli": [HERE + "test_the_command_refuses_in_one_line"],
    },
    "wrong torch ABI or CPU level": {
        "ops": [
            HERE + "test_a_torch_that_is_too_old_is_refused",
            HERE + "test_a_torch_without_a_library_of_its_own_has_autograd_in_python",
            HERE + "test_a_kind_of_autograd_that_does_not_exist_is_refused",
            HERE + "test_a_torch_for_another_cuda_is_named",
            OTHER_TORCH + "test_a_torch_of_another_cuda_is_named_in_the_call",
            OTHER_TORCH + "test_a_torch_that_moves_private_names_is_named_where_they_are_needed",
            HERE + "test_an_nvcc_of_another_cuda_is_refused",
            HERE + "test_a_library_that_does_not_load_is_refused",
            HERE + "test_a_library_of_other_sources_is_refused",
            HERE + "test_a_library_that_is_not_there_is_refused",
            HERE + "test_sources_that_hide_an_installed_package_are_named",
            NOISE + "TestCpuLevels::test_a_level_that_does_not_exist_is_refused",
            NOISE + "TestCpuLevels::test_all_levels_agree",
        ],
        "learner": [
            HERE + "test_a_native_module_that_is_not_there_is_refused",
            HERE + "test_a_gpu_that_the_kernels_do_not_run_on_is_named",
            HERE + "test_native_objects_that_init_has_not_made_are_refused",
            FUSED + "test_other_instruction_sets",
        ],
        "trainer": ["test_devices.py::test_a_gpu_that_the_kernels_cannot_use_is_passed_over_and_said_once"],
        "cli": [HERE + "test_the_command_refuses_a_cpu_level_in_one_line"],
    },
    "a package that is not installed, or is another one": {
        "ops": [OPTIONAL + "test_the_ops_need_torch_alone"],
        "trainer": [
            ENVS + "test_without_envpool_an_unknown_task_may_be_one_of_its_own",
            ENVS + "test_a_source_is_kept",
            ENVS + "test_a_pool_of_another_envpool_is_refused",
            ENVS + "test_a_broken_envpool_is_not_taken_for_a_missing_one",
            "test_resume.py::test_a_run_on_envpool_does_not_go_on_without_it",
        ],
        "cli": [OPTIONAL + "test_a_missing_package_is_one_line_that_says_what_to_install"],
    },
    "replay larger than memory, capacity below a batch, sampling when empty": {
        "learner": [
            STATE + "test_update_refuses",
            REFERENCE + "test_update_refuses",
            ENGINES + "test_a_row_number_that_the_buffer_has_no_row_for_is_named",
        ],
        "replay": [
            HERE + "test_a_replay_buffer_that_cannot_fit_is_refused",
            REPLAY + "test_a_capacity_beyond_free_memory_is_refused_naming_both_sizes",
            REPLAY + "test_sampling_an_empty_buffer_is_refused",
            MEMORY + "test_unified_control_groups_limit_at_every_level",
        ],
        "trainer": [
            CONFIG + "test_sac_config_refuses",
            TRAINER + "test_updates_wait_until_a_minibatch_is_there_and_are_then_made_up_for",
        ],
        "cli": [HERE + "test_the_command_refuses_in_one_line"],
    },
    "non-finite reward, loss or gradient": {
        "learner": [
            STATE + "test_a_batch_that_is_not_finite",
            STATE + "test_a_bad_transition_among_good_ones",
            STATE + "test_a_state_that_leads_to_numbers_that_are_not_finite",
            HERE + "test_the_reference_takes_on_no_bad_number",
            HERE + "test_an_overflow_in_the_temperatures_optimiser_is_named",
        ],
        "trainer": [
            TRAINER + "test_a_number_that_is_not_finite_stops_the_run",
            TRAINER + "test_an_update_that_is_not_finite_ends_the_run_with_what_was_learned",
            HERE + "test_a_reference_update_that_is_not_finite_ends_the_run",
        ],
        "cli": [CLI + "test_a_faulty_environment_fails_the_command_and_keeps_what_was_learned"],
    },
    "SIGTERM, Ctrl-C": {
        "trainer": [
            TRAINER + "test_ctrl_c_ends_the_run_with_its_files_whole",
            TRAINER + "test_a_second_ctrl_c_does_not_wait",
            INTERRUPT + "test_stopped_at_any_step_and_resumed_it_is_the_whole_run",
            INTERRUPT + "test_stopped_between_the_updates_of_a_step",
        ],
        "cli": [CLI + "test_ctrl_c_ends_the_command_with_its_files_whole"],
    },
    "damaged or foreign checkpoint": {
        "learner": [STATE + "test_a_state_of_another_configuration_is_refused"],
        "trainer": [
            CHECKPOINT + "test_a_changed_file_is_refused_by_name",
            CHECKPOINT + "test_a_missing_file_is_refused_by_name",
            CHECKPOINT + "test_another_schema_is_refused",
            CHECKPOINT + "test_a_pickle_is_never_opened",
            INTERRUPT + "test_a_log_of_actions_of_another_form_is_refused",
            RUN_FILES + "test_a_manifest_that_someone_has_edited_is_passed_over_or_harmless",
            RUN_FILES + "test_a_header_that_someone_has_edited_is_passed_over_or_harmless",
            RUN_FILES + "test_a_loaded_model_of_edited_files_is_refused_by_a_checkpoint_error_alone",
            RUN_FILES + "test_what_is_no_regular_file_is_passed_over",
            TRAINER + "test_a_checkpoint_that_is_none_is_refused",
        ],
        "cli": [CLI + "test_bad_usage_is_one_line_that_says_what_is_allowed"],
    },
}


@cache
def names_in(file: str) -> set[str]:
    """The names of a file's tests: test_x, or TestClass::test_x."""
    tree = ast.parse((ROOT / "tests" / file).read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    names |= {f"{c.name}::{node.name}" for c in classes for node in c.body if isinstance(node, ast.FunctionDef)}
    return {name for name in names if name.rpartition("::")[2].startswith("test_")}


def test_the_table_names_tests_that_exist() -> None:
    assert len(TABLE) == 26
    assert {layer for layers in TABLE.values() for layer in layers} == {"ops", "learner", "replay", "trainer", "cli"}
    named = [name for layers in TABLE.values() for names in layers.values() for name in names]
    assert [name for name in named if name.partition("::")[2] not in names_in(name.partition("::")[0])] == []
    here = {HERE + name for name in names_in("test_bad_inputs.py")} - {HERE + "test_the_table_names_tests_that_exist"}
    assert here <= set(named)


# ---- Ops -----------------------------------------------------------------------------------------------------------

# Each op as a function of tensors [4, 3], or of some of their columns.
OPS: dict[str, tuple[int, Callable[..., Any]]] = {
    "rsample": (3, ops.tanh_gaussian_rsample),
    "rsample, noise drawn inside": (2, ops.tanh_gaussian_rsample),
    "log_prob": (3, ops.tanh_gaussian_log_prob),
    "twin_q_target": (7, lambda *tensors: ops.twin_q_target(*(tensor[:, 0] for tensor in tensors))),
    "polyak_update_": (2, lambda target, online: ops.polyak_update_(target, online, 0.5)),
    "adam_polyak_": (5, lambda *tensors: ops.adam_polyak_(*([tensor] for tensor in tensors), step=1, lr=0.1)),
    "categorical_target": (
        7,
        lambda reward, done, logits1, logits2, *columns: ops.categorical_target(
            reward[:, 0], done[:, 0], logits1, logits2, *(column[:, 0] for column in columns), -1.0, 1.0
        ),
    ),
    "categorical_cross_entropy": (2, ops.categorical_cross_entropy),
    "quantile_huber_loss": (2, ops.quantile_huber_loss),
    "truncated_quantile_target": (
        4,
        lambda reward, done, quantiles, log_prob: ops.truncated_quantile_target(
            reward[:, 0], done[:, 0], quantiles[:, None], log_prob[:, 0], 1, 0.2, 0.9
        ),
    ),
    "update_running_moments_": (
        3,
        lambda batch, mean, variance: ops.update_running_moments_(
            mean[0], variance[0], torch.zeros((), dtype=torch.float64), batch
        ),
    ),
    "normalize": (3, lambda x, mean, variance: ops.normalize(x, mean[0], variance[0])),
}
TAKES_A_MASK = [OPS[name][1] for name in ("twin_q_target", "categorical_target", "truncated_quantile_target")]
every_op = pytest.mark.parametrize(("count", "op"), OPS.values(), ids=OPS.keys())


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@every_op
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64], ids=str)
def test_ops_refuse_a_dtype(count: int, op: Callable[..., Any], dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="expected dtype float32 or float64 on the CPU, got"):
        op(*(torch.zeros(4, 3, dtype=dtype) for _ in range(count)))
    for position in range(1, count):
        tensors = [torch.zeros(4, 3) for _ in range(count)]
        tensors[position] = tensors[position].to(dtype)
        if op in TAKES_A_MASK and position == 1 and dtype == torch.bool:
            op(*tensors)  # `terminated` may be a mask
            continue
        with pytest.raises(TypeError, match=r"expected dtype .*like"):
            op(*tensors)


@every_op
def test_ops_refuse_mixed_devices(count: int, op: Callable[..., Any]) -> None:
    """The meta device sends a call to the fake kernel, whose result on a real device would be unwritten memory."""
    for position in range(count):
        tensors = [torch.zeros(4, 3) for _ in range(count)]
        tensors[position] = tensors[position].to("meta")
        with pytest.raises(ValueError, match=r"expected device (cpu|meta) like \w+(\[0\])?, got (cpu|meta)"):
            op(*tensors)
    state = ops.philox_state(1, "meta")
    with pytest.raises(ValueError, match="generator: expected device cpu like mean, got meta"):
        ops.tanh_gaussian_rsample(torch.zeros(4, 3), torch.zeros(4, 3), generator=state)


def test_log_prob_takes_any_view() -> None:
    base = normal(7, 12)
    views = [base[:, 6:], base[:, ::2], normal(6, 7).t(), normal(50)[1:43].view(7, 6), normal(6).expand(7, 6)]
    views.append(normal(7, 1).expand(7, 6))
    for view in views:
        for position in range(3):
            tensors = [0.5 * normal(7, 6, seed=seed) for seed in range(3)]
            tensors[position] = view
            leaves = [[t.detach().requires_grad_() for t in ts] for ts in (tensors, [t.contiguous() for t in tensors])]
            results = [ops.tanh_gaussian_log_prob(*each) for each in leaves]
            assert torch.equal(*results)
            gradients = [torch.autograd.grad(r.sum(), each) for r, each in zip(results, leaves, strict=True)]
            for actual, expected in zip(*gradients, strict=True):
                assert torch.equal(actual, expected)


def test_log_prob_of_nothing() -> None:
    for shape in ((0, 3), (4, 0), (0,)):
        z = torch.zeros(shape, requires_grad=True)
        log_prob = ops.tanh_gaussian_log_prob(z, z.detach(), z.detach())
        assert torch.equal(log_prob, torch.zeros(shape[:-1]))
        log_prob.sum().backward()
        assert z.grad is not None
        assert z.grad.shape == shape


@pytest.mark.parametrize("position", range(3))
def test_log_prob_passes_nan_on(position: int) -> None:
    for rows in (3, 20, 1030):
        tensors = [normal(rows, 2, seed=seed) for seed in range(3)]
        tensors[position][1, 0] = math.nan
        assert ops.tanh_gaussian_log_prob(*tensors).isnan().nonzero().tolist() == [[1]]


def test_bounds_that_make_nan_are_refused() -> None:
    zero = torch.zeros(2, 3)
    for bounds in ((-math.inf, 2.0), (-5.0, math.inf)):
        with pytest.raises(ValueError, match=r"log_std_bounds: expected finite bounds with log_std_bounding 'tanh'"):
            ops.tanh_gaussian_rsample(zero, zero, zero, log_std_bounding="tanh", log_std_bounds=bounds)
        clamped = ops.tanh_gaussian_rsample(zero, zero, zero, log_std_bounding="clamp", log_std_bounds=bounds)
        assert torch.equal(clamped[1], ops.tanh_gaussian_rsample(zero, zero, zero)[1])


@pytest.mark.parametrize("log_std", [-20.0, -5.0, 0.0, 5.0])
def test_log_prob_of_extremes(log_std: float) -> None:
    z = torch.tensor([[-20.0, -9.0, -1e-4, 0.0, 9.0, 15.0, 20.0]])
    tensors = [z, z.clone(), torch.full_like(z, log_std)]  # the mean itself: the quadratic term would hide the rest
    leaves = [each.requires_grad_() for each in tensors]
    doubles = [each.detach().double().requires_grad_() for each in tensors]
    actual, expected = ops.tanh_gaussian_log_prob(*leaves), tanh_gaussian_log_prob_reference(*doubles)
    # Seven terms of up to 40 and 20, each rounded a few times.
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-4)
    for a, e in zip(
        torch.autograd.grad(actual.sum(), leaves), torch.autograd.grad(expected.sum(), doubles), strict=True
    ):
        torch.testing.assert_close(a.double(), e, rtol=1e-5, atol=1e-6)


def test_results_share_memory_with_nothing() -> None:
    for rows in (0, 1, 5):
        mean, log_std, noise = (normal(rows, 1, seed=seed).requires_grad_(seed < 2) for seed in range(3))
        columns = [normal(rows, seed=10 + seed).requires_grad_(seed > 1) for seed in range(5)]
        inputs = [mean, log_std, noise, *columns]
        action, log_prob = ops.tanh_gaussian_rsample(mean, log_std, noise, action_scale=torch.ones(1))
        results = [action, log_prob, ops.tanh_gaussian_log_prob(mean, log_std, noise)]
        results.append(ops.twin_q_target(*columns, alpha=0.2, gamma=0.9))
        results += torch.autograd.grad(sum(each.sum() for each in results), [mean, log_std, *columns[2:]])
        if rows:
            assert len({each.untyped_storage().data_ptr() for each in (*inputs, *results)}) == len(inputs + results)
            with torch.no_grad(), pytest.raises(ValueError, match="out: expected memory that no input shares"):
                ops.twin_q_target(*columns, alpha=0.2, gamma=0.9, out=columns[0])


def rsample_for_edits(mean: Tensor, log_std: Tensor, noise: Tensor, scale: Tensor) -> Tensor:
    action, log_prob = ops.tanh_gaussian_rsample(mean, log_std, noise, action_scale=scale[0])
    return action.sum() + log_prob.sum()


EDITS: dict[str, tuple[int, Callable[..., Tensor], range]] = {  # inputs, of which these take a gradient
    "rsample": (4, rsample_for_edits, range(2)),
    "log_prob": (3, lambda *tensors: ops.tanh_gaussian_log_prob(*tensors).sum(), range(3)),
    # Without the reward, which the gradient does not need: terminated, q1, q2, log_prob, alpha, gamma.
    "twin_q_target": (
        6,
        lambda *tensors: ops.twin_q_target(torch.zeros(4), *(tensor[:, 0] for tensor in tensors)).sum(),
        range(1, 5),
    ),
}


@pytest.mark.parametrize(("count", "function", "differentiable"), EDITS.values(), ids=EDITS.keys())
def test_any_edit_of_what_a_gradient_needs_is_noticed(
    count: int, function: Callable[..., Tensor], differentiable: range
) -> None:
    for edited in range(count):
        tensors = [normal(4, 3, seed=seed) for seed in range(count)]
        for position in differentiable:
            if position != edited:  # torch itself refuses to edit a leaf that requires grad
                tensors[position].requires_grad_()
        result = function(*tensors)
        tensors[edited].add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.backward()


def test_an_edit_of_what_no_gradient_needs_changes_nothing() -> None:
    mean, log_std = normal(4, 3), normal(4, 3, seed=1)
    gradients = []
    for edit in (False, True):
        state, leaf, q1 = ops.philox_state(3), mean.clone().requires_grad_(), normal(4).requires_grad_()
        action, log_prob = ops.tanh_gaussian_rsample(leaf, log_std, generator=state)
        reward, done = torch.zeros(4), torch.zeros(4).bool()
        target = ops.twin_q_target(reward, done, q1, normal(4, seed=2), normal(4, seed=3), 0.2, 0.9)
        action_sum, other = action.sum(), log_prob.sum() + target.sum()
        if edit:
            state.zero_()
            reward.fill_(math.nan)
            for result in (action, log_prob, target):
                result.detach().fill_(math.nan)
        gradients.append(torch.autograd.grad(action_sum + other, (leaf, q1)))
    for plain, edited in zip(*gradients, strict=True):
        assert torch.equal(plain, edited)
        assert plain.isfinite().all()


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tensor]:
    """2^31 + 2^21 zeros on a file with holes: only what is touched takes memory."""
    elements = 2**31 + 2**21
    path = tmp_path_factory.mktemp("sparse") / "zeros"
    with path.open("wb") as file:
        file.truncate(4 * elements)
    if shutil.disk_usage(path.parent).free < 2**26 or path.stat().st_blocks > 2**17:
        pytest.skip("needs a file system with sparse files")
    yield torch.from_file(str(path), shared=True, size=elements, dtype=torch.float32)
    path.unlink()


def test_ops_reach_beyond_2_31_elements(sparse: Tensor) -> None:
    """Three rows, each 2^30 elements after the other: an index of 32 bits would fold them into one another."""
    far = [sparse.as_strided((3, 4), (2**30, 1), 8 * seed) for seed in range(5)]
    near = [normal(3, 4, seed=seed) for seed in range(5)]
    for view, values in zip(far, near, strict=True):
        view.copy_(values)
    assert torch.equal(sparse[2**31 : 2**31 + 4], near[0][2])

    def results(tensors: list[Tensor]) -> list[Tensor]:
        leaves = [each.detach().requires_grad_() for each in tensors]
        made = [*ops.tanh_gaussian_rsample(*leaves[:2], tensors[2]), ops.tanh_gaussian_log_prob(*leaves[:3])]
        columns = [each[:, 1] for each in (*tensors[:2], *leaves[2:])]
        made.append(ops.twin_q_target(*columns, alpha=0.2, gamma=0.9))
        return [*made, *torch.autograd.grad(sum(each.sum() for each in made), leaves)]

    for actual, expected in zip(results(far), results(near), strict=True):
        assert torch.equal(actual, expected)
    for target, online in ((far[0], near[1]), (near[2], far[3]), (far[3], far[4])):
        expected = target.lerp(online, 0.25)
        ops.polyak_update_(target, online, 0.25)
        torch.testing.assert_close(target, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="expected memory that no other argument shares"):
        ops.polyak_update_(far[0], sparse.as_strided((3, 4), (2**30, 1), 3), 0.25)


@pytest.mark.cuda
def test_ops_count_beyond_2_31_elements() -> None:
    """Inputs of one element; what is written takes 8 to 17 GB, too much for the machines that test the CPU."""
    count = 2**31 + 5
    if torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("needs 40 GB of GPU memory")
    values = torch.arange(1.0, 6.0, device="cuda")
    target = ops.twin_q_target(*(value.expand(count) for value in values), alpha=0.5, gamma=0.5)
    expected = ops.twin_q_target(*(value.expand(1) for value in values), alpha=0.5, gamma=0.5)
    assert bool((target == expected).all())
    del target
    action, log_prob = ops.tanh_gaussian_rsample(*(value.expand(count, 1) for value in values[:3]))
    one_action, one_log_prob = ops.tanh_gaussian_rsample(*(value.expand(1, 1) for value in values[:3]))
    assert bool((action == one_action).all())
    assert bool((log_prob == one_log_prob).all())


def test_threads_that_share_a_state_draw_different_noise() -> None:
    state, zero, drawn = ops.philox_state(1), torch.zeros(1, 4), []

    def draw() -> None:
        for _ in range(2000):
            drawn.append(ops.tanh_gaussian_rsample(zero, zero, generator=state)[0])

    in_threads(draw, draw)
    assert state.tolist() == [1, 4000]
    assert len({tuple(each.flatten().tolist()) for each in drawn}) == 4000


def in_threads(*works: Callable[[], None]) -> None:
    workers = [threading.Thread(target=work) for work in works]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)


def test_an_op_without_memory_changes_nothing() -> None:
    state, one = ops.philox_state(1), torch.ones(1, 4)
    huge = one.expand(2**42, 4)
    with pytest.raises(RuntimeError, match="can't allocate memory: you tried to allocate 70368744177664 bytes"):
        ops.tanh_gaussian_rsample(huge, one, generator=state)
    assert state.tolist() == [1, 0]
    with pytest.raises(RuntimeError, match="can't allocate memory: you tried to allocate 17592186044416 bytes"):
        ops.twin_q_target(*(huge[:, 0] for _ in range(5)), alpha=0.2, gamma=0.9)
    with pytest.raises(RuntimeError, match="overflow"):
        ops.tanh_gaussian_log_prob(torch.ones(1, 1, 1).expand(2**40, 2**40, 1), one, one)


@pytest.mark.cuda
def test_ops_on_a_side_stream() -> None:
    """The default stream is kept busy meanwhile: work that went there would come too late or too early."""
    mean, log_std, noise = (normal(65_536, 6, seed=seed).cuda() for seed in range(3))
    columns = [mean[:, i].contiguous() for i in range(5)]
    average = log_std.clone()
    expected = [*ops.tanh_gaussian_rsample(mean, log_std, noise), ops.twin_q_target(*columns, alpha=0.2, gamma=0.9)]
    ops.polyak_update_(average, mean, 0.3)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    torch.cuda._sleep(200_000_000)  # about 0.1 s
    with torch.cuda.stream(side):
        actual = [*ops.tanh_gaussian_rsample(mean, log_std, noise), ops.twin_q_target(*columns, alpha=0.2, gamma=0.9)]
        ops.polyak_update_(log_std, mean, 0.3)
        after = [each.clone() for each in (*actual, log_std)]
    side.synchronize()
    assert not torch.cuda.default_stream().query()
    for a, e in zip(after, [*expected, average], strict=True):
        assert torch.equal(a.cpu(), e.cpu())


@pytest.mark.cuda
def test_twin_q_target_in_a_cuda_graph() -> None:
    columns = [normal(300, seed=seed).cuda() for seed in range(5)]
    ops.twin_q_target(*columns, alpha=0.2, gamma=0.9)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        target = ops.twin_q_target(*columns, alpha=0.2, gamma=0.9)
    columns[0].add_(1.0)
    graph.replay()
    assert torch.equal(target, ops.twin_q_target(*columns, alpha=0.2, gamma=0.9))


# ---- The native libraries ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.10.1+cpu", "1.13.1"])
def test_a_torch_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    message = rf"expected torch 2\.11 or later, got torch {re.escape(version)}: run `pip install 'torch>=2\.11'`$"
    with pytest.raises(ImportError, match=message):
        _ext.load.__wrapped__()


def test_a_torch_without_a_library_of_its_own_has_autograd_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.99.0+cpu")
    assert _ext.autograd_library() is None
    assert _ext.info()["autograd"] == "Python"


def test_a_kind_of_autograd_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACFAST_AUTOGRAD", "c++")
    with pytest.raises(ImportError, match=r"SACFAST_AUTOGRAD: expected 'python' or nothing, got 'c\+\+'"):
        _ext.load.__wrapped__()


def test_a_torch_for_another_cuda_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(_ext, "FOLDER", tmp_path)
    assert "built without CUDA kernels: where nvcc is installed, build it from source" in _ext.cuda_reason()
    (tmp_path / "_ops_cuda13.so").touch()
    assert _ext.cuda_library() is None  # nothing of another CUDA is loaded
    assert re.fullmatch(
        r"sacfast has kernels for CUDA 13, and torch .* is built for CUDA 12\.8: install a torch for CUDA 13, .*",
        _ext.cuda_reason(),
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert _ext.cuda_library() == tmp_path / "_ops_cuda13.so"


def test_an_nvcc_of_another_cuda_is_refused() -> None:
    beside = Path(sys.executable).with_name("cmake")
    cmake = shutil.which(beside) or shutil.which("cmake")
    assert cmake is not None

    def check(cuda: str, nvcc: str) -> str:
        facts = (f"-DTORCH_CUDA={cuda}", f"-DNVCC_VERSION={nvcc}")
        command = [cmake, *facts, "-P", str(ROOT / "cmake" / "cuda_major.cmake")]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    for cuda, nvcc in (("13.0", "13.0.88"), ("13.2", "13.0.88"), ("", "12.8.61")):  # the last: a CPU build of torch
        assert check(cuda, nvcc) == ""
    message = " ".join(check("12.8", "13.0.88").split())
    assert "nvcc is of CUDA 13.0.88 and the installed torch is built for CUDA 12.8: set CUDA_HOME to a" in message
    assert "set SACFAST_CUDA=0" in message


def test_a_gpu_that_the_kernels_do_not_run_on_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_ext, "FOLDER", tmp_path)
    (tmp_path / "_ops_cuda13.so").touch()
    for name, value in {"is_available": True, "device_count": 2}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5) if index == 1 else (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    for number, reason in ((1, "GPU 1 is older than compute capability 8.0"), (2, "the machine has 2 of them")):
        with pytest.raises(
            ValueError, match=f"^device: expected one that this machine has, got 'cuda:{number}': {reason}"
        ):
            engines.check_device(torch.device("cuda", number), torch.float32)
    engines.check_device(torch.device("cuda", 0), torch.float32)


def test_a_library_that_does_not_load_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_ext, "LIBRARY", tmp_path / "_ops.so")
    (tmp_path / "_ops.so").write_bytes(_ext.LIBRARY.name.encode())
    with pytest.raises(ImportError, match=r"_ops\.so does not load into torch .* damaged: run `pip install"):
        _ext.load.__wrapped__()


def test_a_library_of_other_sources_is_refused() -> None:
    autograd = _ext.autograd_library()
    assert autograd is not None
    with pytest.raises(ImportError, match=r"_autograd_\d+\.so was built from other sources .* run `make setup`"):
        _ext._register_kernels(autograd, "CPU", autograd)  # it has no kernels, as the library of an earlier build may


def test_a_library_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_ext, "LIBRARY", tmp_path / "_ops.so")
    with pytest.raises(ImportError, match=r"_ops\.so is not built; run `pip install"):
        _ext.load.__wrapped__()


NO_MODULE = """
import sys
import sysconfig
sys.modules["sacfast.MODULE"] = None
from sacfast import cli
sys.exit(cli.main("train --env-id Pendulum-v1 --run-dir /nowhere/run".split()))
"""
NO_LEVEL = "import sys; from sacfast import cli; sys.exit(cli.main(['doctor']))"


@pytest.fixture(scope="module", autouse=True)
def programs() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Tests in a process of their own: they start, which takes seconds, while the other tests run."""
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    scripts = {"fork": (FORK, {}), "level": (NO_LEVEL, {"SACFAST_CPU_LEVEL": "sse9"})}
    scripts |= {module: (NO_MODULE.replace("MODULE", module), {}) for module in ("_C", "_collect")}
    started = {
        name: subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],  # of fork(), Python 3.12
            env={**os.environ, "PYTHONPATH": paths, **environment},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, (script, environment) in scripts.items()
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


def outcome(program: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The exit code, what was printed, and the errors."""
    output, errors = program.communicate(timeout=120)
    return program.returncode, output, errors


@pytest.mark.parametrize("module", ["_C", "_collect"])
def test_a_native_module_that_is_not_there_is_refused(programs: dict[str, subprocess.Popen[str]], module: str) -> None:
    code, _, errors = outcome(programs[module])
    assert code == cli.FAILED
    assert errors.count("\n") == 1
    assert f"the native module {module} is not built for this Python" in errors
    assert "pip install" in errors


@pytest.mark.parametrize(
    ("missing", "statement"),
    [
        (("_ops", "_C", "_collect"), "from sacfast import ops"),
        (("_ops", "_C", "_collect"), "from sacfast import ReplayBuffer"),
        (("_C",), "import sacfast; sacfast.make_learner(2, 1)"),
    ],
)
def test_sources_that_hide_an_installed_package_are_named(
    tmp_path: Path, missing: tuple[str, ...], statement: str
) -> None:
    """Python that is started in a clone, after `pip install .`, takes the sources there."""
    clone, package = tmp_path / "sacfast", ROOT / "sacfast"
    shutil.copytree(package, clone, ignore=lambda *_: {each.name for each in package.iterdir() if each.suffix == ".so"})
    for library in package.glob("*.so"):
        if library.name.partition(".")[0] not in missing:
            (clone / library.name).symlink_to(library)
    # -S: without the finder of an editable installation, which gives what the sources lack.
    command = [sys.executable, "-S", "-c", statement]
    paths = os.pathsep.join((str(ROOT), sysconfig.get_path("purelib")))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    said = f"Python has found the sources in {clone} before the package that is installed in {package}: start it in"
    assert said in done.stderr


def test_the_command_refuses_a_cpu_level_in_one_line(programs: dict[str, subprocess.Popen[str]]) -> None:
    allowed = ", ".join(_ext.info()["cpu_levels_available"])
    message = f"SACFAST_CPU_LEVEL: expected one of {allowed} on this processor, got 'sse9'"
    assert outcome(programs["level"]) == (cli.FAILED, "", f"sacfast doctor: sacfast: {message}\n")


# ---- Learner -------------------------------------------------------------------------------------------------------

Learner = FusedLearner | ReferenceLearner
LEARNERS: dict[str, Callable[..., Learner]] = {
    "fused": lambda options=None: FusedLearner(O, A, make_config(options), seed=1),
    "reference": lambda options=None: ReferenceLearner(O, A, make_config(options), seed=1),
    "reference, plain ops": lambda options=None: ReferenceLearner(O, A, make_config(options, fused_ops=False), seed=1),
}
every_learner = pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS.keys())

BAD_DATA: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "float16": (lambda t: t.half(), TypeError, "expected dtype .*, got torch.float16"),
    "int64": (lambda t: t.long(), TypeError, "expected dtype .*, got torch.int64"),
    "complex": (lambda t: t.to(torch.complex64), TypeError, "expected dtype .*, got torch.complex64"),
    "array": (lambda t: t.numpy(), TypeError, "expected a tensor, got ndarray"),
    "column": (lambda t: t.unsqueeze(-1), ValueError, r"expected shape \(16,.*\), got \(16,.* 1\)"),
    "one row": (lambda t: t[:1], ValueError, r"expected shape \(16,.*\), got \(1,"),
    "no rows": (lambda t: t[:0], ValueError, r"expected shape \(16,.*\), got \(0,"),
    "meta": (lambda t: t.to("meta"), ValueError, "expected a tensor on cpu like the learner, got one on meta"),
    "requires_grad": (lambda t: t.clone().requires_grad_(), ValueError, "expected a tensor without requires_grad"),
}
bad_data = pytest.mark.parametrize(("spoil", "error", "message"), BAD_DATA.values(), ids=BAD_DATA.keys())


def assert_unchanged(learner: Learner, act: Callable[[], object], error: type[Exception], message: str) -> None:
    before = learner.state_dict()
    with pytest.raises(error, match=message):
        act()
    assert_states_equal(learner.state_dict(), before)


@every_learner
@bad_data
def test_a_batch_that_does_not_fit_is_refused(
    make: Callable[..., Learner], spoil: Callable[[Tensor], Any], error: type[Exception], message: str
) -> None:
    """One field of it; without the check a reward [B, 1] made a target [B, B], and no rows made NaN."""
    batch = random_batch(0)
    for options in ({}, OPTIONS["v1"]):
        learner = make(options)
        for name in Batch._fields:
            bad = batch._replace(**{name: spoil(getattr(batch, name))})
            assert_unchanged(
                learner, lambda bad=bad, learner=learner: learner.update_batch(bad), error, f"^{name}: {message}"
            )
        whole = Batch(*(spoil(field) for field in batch))
        assert_unchanged(learner, lambda whole=whole, learner=learner: learner.update_batch(whole), error, message)


@every_learner
@bad_data
def test_noise_that_does_not_fit_is_refused(
    make: Callable[..., Learner], spoil: Callable[[Tensor], Any], error: type[Exception], message: str
) -> None:
    learner, batch = make(), random_batch(0)
    noise = random_noise(learner.config, 0, torch.float32)
    for name, good in noise.items():
        bad = {**noise, name: spoil(good)}
        assert_unchanged(learner, lambda bad=bad: learner.update_batch(batch, **bad), error, f"^{name}: {message}")


@every_learner
def test_a_batch_of_views_is_that_of_their_copies(make: Callable[..., Learner]) -> None:
    batch = random_batch(0)
    views = Batch(
        normal(O, B).t(), normal(B, 2 * A)[:, ::2].tanh(), normal(1).expand(B), normal(1, O).expand(B, O), batch[4]
    )
    states = []
    for each in (views, Batch(*(field.contiguous() for field in views))):
        learner = make()
        learner.update_batch(each)
        states.append(learner.state_dict())
    assert_states_equal(*states)


class GivenRows:
    """A buffer of 64 transitions with rows and row numbers as they are given."""

    def __init__(self, rows: Tensor, draw: Callable[[int], Tensor]) -> None:
        self.rows, self.draw = rows, draw

    def __len__(self) -> int:
        return 64

    def sample(self, batch_size: int) -> Batch:
        raise AssertionError("the fused learner draws row numbers")


WIDTH = 2 * O + A + 2


@pytest.mark.parametrize("rows", [torch.zeros(64, 2 * WIDTH)[:, ::2], torch.zeros(1, WIDTH).expand(64, WIDTH)])
def test_rows_with_holes_are_refused(rows: Tensor) -> None:
    learner = LEARNERS["fused"]()
    replay = GivenRows(rows, lambda count: torch.zeros(count, dtype=torch.int64))
    assert_unchanged(
        learner, lambda: learner.update(replay), ValueError, "replay: expected contiguous rows, got strides"
    )


@pytest.mark.parametrize(
    ("draw", "got"),
    [
        (lambda count: torch.zeros(count, dtype=torch.int32), r"torch.int32 \[16\] on cpu"),
        (lambda count: torch.zeros(count - 1, dtype=torch.int64), r"torch.int64 \[15\] on cpu"),
        (lambda count: torch.zeros(count, dtype=torch.int64, device="meta"), r"torch.int64 \[16\] on meta"),
    ],
)
def test_row_numbers_that_do_not_fit_are_refused(draw: Callable[[int], Tensor], got: str) -> None:
    learner = LEARNERS["fused"]()
    replay = GivenRows(torch.zeros(64, WIDTH), draw)
    message = f"replay: expected 16 int64 row numbers on cpu, got {got}"
    assert_unchanged(learner, lambda: learner.update(replay), ValueError, message)


@every_learner
@pytest.mark.parametrize("mean", [-20.0, 20.0])
@pytest.mark.parametrize("log_std", [-1e4, 1e4])
def test_a_policy_of_extremes_is_learned_from(make: Callable[..., Learner], mean: float, log_std: float) -> None:
    learner = make()
    state = learner.state_dict()
    state["actor.layers.2.bias"] = torch.tensor([mean] * A + [log_std] * A)
    learner.load_state_dict(state)
    metrics = learner.update(random_replay(), 3).to_dict()
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(value.isfinite().all() for value in learner.state_dict().values())
    assert learner.gradient_updates == 3


@every_learner
def test_targets_never_share_storage(make: Callable[..., Learner]) -> None:
    for options in ({}, OPTIONS["v1"], OPTIONS["hard-every-1"]):
        learner = make(options)
        learner.update(random_replay(), 2)
        networks = learner._networks.values()
        assert len({network.flat.untyped_storage().data_ptr() for network in networks}) == len(networks)


@every_learner
def test_a_state_whose_tensors_are_one(make: Callable[..., Learner]) -> None:
    """A state that a user has put together from one tensor twice must not tie the target to the online network."""
    state = make().state_dict()
    shared = {
        name: state[name.removeprefix("target_")] if name.startswith("target_") else state[name] for name in state
    }
    results = []
    for given in (shared, {name: value.clone() for name, value in shared.items()}):
        learner = make()
        learner.load_state_dict(given)
        learner.update(random_replay(), 3)
        results.append(learner.state_dict())
    assert_states_equal(*results)
    name = "critic.q1.layers.0.weight"
    assert not torch.equal(results[0][name], results[0][f"target_{name}"])


def modes() -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    return {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    }


@every_learner
@pytest.mark.parametrize("mode", modes().values(), ids=modes().keys())
def test_the_callers_mode_does_not_reach_into_an_update(
    make: Callable[..., Learner], mode: Callable[[], AbstractContextManager[Any]]
) -> None:
    expected = make()
    expected_metrics = expected.update(random_replay(), 3).to_dict()
    with mode():
        learner = make()
        metrics = learner.update(random_replay(), 2)
    learner.update_batch(random_replay_batch(2))
    assert_states_equal(learner.state_dict(), expected.state_dict())
    assert metrics.keys() == expected_metrics.keys()
    with mode():
        learner.load_state_dict(learner.state_dict())
    learner.update(random_replay(), 1)


def random_replay_batch(earlier: int) -> Batch:
    """The minibatch that comes after so many."""
    replay = random_replay()
    for _ in range(earlier):
        replay.draw(B)
    return replay.sample(B)


@pytest.mark.cuda
def test_the_reference_on_a_side_stream() -> None:
    learners = [ReferenceLearner(O, A, make_config(), device="cuda", seed=1) for _ in range(2)]
    replays = []
    for _ in learners:
        replay = ReplayBuffer(64, O, A, device="cuda")
        batch = random_batch(0, rows=64)
        replay.add(*batch[:4], batch.terminated.bool())
        replays.append(replay)
    torch.cuda.synchronize()
    learners[0].update(replays[0], 10)
    with torch.cuda.stream(torch.cuda.Stream()):
        learners[1].update(replays[1], 10)
        torch.cuda.current_stream().synchronize()
    torch.cuda.synchronize()
    states = [{name: value.cpu() for name, value in learner.state_dict().items()} for learner in learners]
    assert_states_equal(*states)


@every_learner
def test_a_second_thread_is_refused_whatever_it_asks(make: Callable[..., Learner]) -> None:
    learner, inside, leave = make(), threading.Event(), threading.Event()
    state, batch = learner.state_dict(), random_batch(0)

    def draw(count: int) -> Tensor:
        inside.set()
        leave.wait(60)
        return torch.arange(count)

    class Slow(GivenRows):
        def sample(self, batch_size: int) -> Batch:
            draw(batch_size)
            return batch

    def first() -> None:
        learner.update(Slow(torch.cat([field.view(B, -1) for field in batch], 1), draw), 1)

    worker = threading.Thread(target=first)
    worker.start()
    assert inside.wait(60)
    acts: list[Callable[[], object]] = [
        lambda: learner.update(random_replay(), 1),
        lambda: learner.update_batch(random_batch(1)),
        learner.state_dict,
        lambda: learner.load_state_dict(state),
    ]
    if isinstance(learner, FusedLearner):
        acts += [lambda: learner.profile(random_replay(), 1), learner.wait]
    for act in acts:
        with pytest.raises(RuntimeError, match=r"^learner: in use by another thread$"):
            act()
    leave.set()
    worker.join(60)
    twin = make()
    twin.update_batch(batch)
    for each in (learner, twin):
        each.update(random_replay(), 1)
    assert_states_equal(learner.state_dict(), twin.state_dict())


FORK = """
import os, signal, sys
import torch
torch.set_num_threads(2)
from learner_cases import A, O, make_config, random_batch, random_replay
from sacfast import SAC, ops
from sacfast.reference import ReferenceLearner

x = torch.arange(600_000.0).view(100_000, 6) / 3e5 - 1
negative = -x
def results():
    average = torch.from_numpy(x.numpy().copy())  # by torch it would take threads, and hang in the child
    ops.polyak_update_(average, negative, 0.3)
    made = *ops.tanh_gaussian_rsample(x, x, x), ops.tanh_gaussian_log_prob(x, x, x), average
    return [each.numpy().tobytes() for each in made]

expected = results()
learner = ReferenceLearner(O, A, make_config(), seed=1)
learner.update(random_replay(), 2)
model = SAC("Pendulum-v1", num_envs=2, hidden_sizes=(16,), batch_size=16, learning_starts=20, progress=False,
            evaluation_episodes=0)
model.learn(40)

def refused(act):
    try:
        act()
    except RuntimeError as error:
        return "fork" in str(error)
    return False

sys.stdout.flush()
pid = os.fork()
if pid == 0:
    signal.alarm(60)  # a child that hangs is ended by it, and seen by its exit code
    assert results() == expected
    assert refused(lambda: learner.update(random_replay(), 1))
    assert refused(lambda: learner.update_batch(random_batch(0)))
    assert refused(lambda: learner.load_state_dict(learner.state_dict()))
    assert refused(lambda: model.learn(20))
    sys.exit(7)  # through the whole of Python's own end
print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
assert results() == expected
learner.update(random_replay(), 1)
print("parent", learner.gradient_updates, model.learn(20).timesteps)
"""


def test_after_a_fork(programs: dict[str, subprocess.Popen[str]]) -> None:
    """The ops work, alone; learners and environments, whose threads are gone, refuse; all end in peace."""
    assert outcome(programs["fork"]) == (0, "child 7\nparent 3 60\n", "")


@pytest.mark.parametrize("kind", [FusedLearner, ReferenceLearner])
def test_a_learner_that_cannot_fit_is_refused(kind: type[Learner], monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"hidden_sizes": (10**6, 10**6)}, {"hidden_sizes": (2**62,)}, {"batch_size": 10**12}):
        options = {"replay_capacity": 10**13, **options}
        with pytest.raises(ValueError, match=r"hidden_sizes: .* need \d+\.\d\d GB, but cpu has \d+\.\d\d GB free"):
            kind(O, A, make_config(options))
    # Parameters, by hand: actor 5*2 + 3*6, each critic 8*2 + 3. Networks and targets have gradients.
    of_networks = 4 * 2 * (28 + 4 * 19)
    if kind is FusedLearner:
        needed = of_networks + engines.engine_bytes(settings_of(hidden_sizes=(2,)), torch.device("cpu"), torch.float32)
    else:  # two moments; of a transition its row, (x, a~), and 3 networks' 2 units
        needed = of_networks + 4 * (2 * (28 + 2 * 19) + 16 * (13 + 7 + 3 * 2))
    monkeypatch.setattr(memory, "free_memory", lambda device: needed)
    kind(O, A, make_config(hidden_sizes=(2,)))
    monkeypatch.setattr(memory, "free_memory", lambda device: needed - 1)
    with pytest.raises(ValueError, match=r"hidden_sizes: \(2,\) with 4 observations, 3 actions and batch_size 16 need"):
        kind(O, A, make_config(hidden_sizes=(2,)))


def settings_of(**options: Any) -> Any:
    return fused._settings(O, A, make_config(options))


@pytest.mark.parametrize(
    ("observation_dim", "options"),
    [(O, {"batch_size": 200_000}), (100_000, {}), (O, {"hidden_sizes": (1000, 1000)}), (O, OPTIONS["v1"])],
    ids=["rows", "observations", "units", "v1"],
)
def test_what_an_engine_is_said_to_take_is_what_it_takes(observation_dim: int, options: dict[str, Any]) -> None:
    """Beside what it takes however small it is: stacks of threads, and what Python needs to speak to it."""
    config = make_config(options)
    settings = fused._settings(observation_dim, A, config)
    rows = torch.zeros(1, 2 * observation_dim + A + 2)
    index = torch.zeros(1, config.batch_size, dtype=torch.int64)
    actor = torch.zeros(networks.Actor(observation_dim, A, config.hidden_sizes).flat.shape)
    before = allocated_bytes()
    engine = engines.CpuEngine(settings, torch.float32)
    engine.threads = lambda: 2  # type: ignore[method-assign]
    engine.run(rows, index, None, None, actor, torch.zeros(len(engines.METRICS), dtype=torch.float64))
    taken = allocated_bytes() - before
    expected = _C.Engine32.bytes(settings, 2)
    assert 0 <= taken - expected < 3e6


@pytest.mark.parametrize("name", ["observation_dim", "action_dim", "batch_size", "hidden_sizes"])
@pytest.mark.parametrize("size", [2**30 + 1, 2**60, 2**62, -1])
def test_a_native_engine_refuses_sizes_that_no_memory_has(name: str, size: int) -> None:
    settings = settings_of()
    setattr(settings, name, [size] if name == "hidden_sizes" else size)
    limit = ">= 1" if size < 1 else "<= 1073741824"
    for build in (_C.Engine32, lambda settings: _C.Engine64.bytes(settings, 1)):
        with pytest.raises(ValueError, match=rf"^{name}: expected an int {limit}, got {size}$"):
            build(settings)


def test_a_native_engine_refuses_sizes_whose_sum_overflows() -> None:
    settings = settings_of()
    settings.hidden_sizes = [2**30] * 8
    for build in (_C.Engine32, lambda settings: _C.Engine64.bytes(settings, 1)):
        with pytest.raises(ValueError, match="sizes: expected those of a learner whose memory has addresses"):
            build(settings)


def test_a_learner_that_does_not_fit_after_all_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an engine that finds no memory throws arrives as MemoryError: bad_alloc, as pybind11 translates it."""
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**80)
    options = {"hidden_sizes": (2**20,), "batch_size": 2**30, "replay_capacity": 2**30}  # beyond any address space
    with pytest.raises(MemoryError, match=r"hidden_sizes \(1048576,\) with batch_size 1073741824: no memory left"):
        FusedLearner(O, A, make_config(options))


def test_a_native_engine_writes_to_no_read_only_array() -> None:
    settings = settings_of()
    engine, size = _C.Engine32(settings), make_actor_size(settings)
    rows, index = np.zeros((1, WIDTH), np.float32), np.zeros((1, B), np.int64)
    actor, metrics = np.zeros(size, np.float32), np.zeros(len(_C.METRICS))
    for name, array in (("actor", actor), ("metrics", metrics)):
        array.flags.writeable = False
        with pytest.raises(ValueError, match=f"^{name}: expected an array to write to, got a read-only one$"):
            engine.update(rows, index, 1, actor, metrics)
        array.flags.writeable = True
    actor.flags.writeable = False
    with pytest.raises(ValueError, match=r"^into: expected an array to write to, got a read-only one$"):
        engine.read("actor", "parameters", actor)
    engine.write("actor", "parameters", actor)  # which it only reads
    assert engine.counters.gradient_updates == 0
    assert not actor.any()
    assert not metrics.any()


def make_actor_size(settings: Any) -> int:
    return networks.Actor(settings.observation_dim, settings.action_dim, settings.hidden_sizes).flat.numel()


def test_native_objects_that_init_has_not_made_are_refused() -> None:
    """Of `__new__` alone; a method of a class takes any object, too."""
    message = "expected an object that its __init__ has made, got one by __new__ alone"
    settings, engine = _C.UpdateSettings.__new__(_C.UpdateSettings), _C.Engine32.__new__(_C.Engine32)
    counters, actor = _C.UpdateCounters.__new__(_C.UpdateCounters), collect.Actor.__new__(collect.Actor)
    values = np.zeros(4, np.float32)
    acts: list[Callable[[], object]] = [
        lambda: settings.hidden_sizes,
        lambda: setattr(settings, "hidden_sizes", [3]),
        lambda: setattr(settings, "log_std_bounding", "tanh"),
        lambda: _C.Engine32(settings),
        lambda: _C.Engine64.bytes(settings, 1),
        lambda: engine.read("actor", "parameters", values),
        lambda: engine.write("actor", "parameters", values),
        lambda: engine.adopt(values),
        lambda: engine.update(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int64), 1, values, np.zeros(8)),
        lambda: engine.counters,
        engine.profile,
        lambda: counters.adam_steps,
        lambda: setattr(counters, "noise_state", (1, 2)),
        lambda: actor.act(np.zeros((1, 1), np.float32)),
    ]
    for act in acts:
        with pytest.raises(TypeError, match=message):
            act()
    for other in (3, settings_of()):
        with pytest.raises(TypeError, match=f"expected Engine32, got {type(other).__name__}"):
            _C.Engine32.profile(other)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected Actor, got int"):
        collect.Actor.act(3, values)  # type: ignore[arg-type]


BAD_STATES = [
    ({}, "reward", {}, "critic_loss"),
    ({}, "next_observation", {}, "critic_loss"),
    (OPTIONS["v1"], "reward", {}, "critic_loss"),
    ({}, None, {"actor.layers.2.bias": math.nan}, "critic_loss"),
    (OPTIONS["v1"], None, {"actor.layers.2.bias": math.nan}, "(value|actor)_loss"),
    (OPTIONS["v1"], None, {"value.layers.2.bias": math.inf}, "value_loss"),
    # Q is small and its error 1, but the head's weight times the observation overflows (see test_fused_state.py).
    (
        {"hidden_sizes": (8,)},
        None,
        {"critic.q1.layers.0.weight": 0.0, "critic.q1.layers.0.bias": 2e-38, "critic.q1.layers.1.weight": 1e38},
        "the gradient of critic",
    ),
    # The gradient is finite, at 1e24, but its square is not.
    (
        {"hidden_sizes": (8,)},
        None,
        {"critic.q1.layers.0.weight": 0.0, "critic.q1.layers.0.bias": 1e-28, "critic.q1.layers.1.weight": 1e24},
        "the optimiser state of critic",
    ),
    (
        {"hidden_sizes": (8,)},
        None,
        {"actor.layers.0.weight": 0.0, "actor.layers.0.bias": 1e-29, "actor.layers.1.weight": 1e24},
        "the optimiser state of actor",
    ),
]


@pytest.mark.parametrize("fused_ops", [True, False])
@pytest.mark.parametrize(("options", "field", "entries", "what"), BAD_STATES)
def test_the_reference_takes_on_no_bad_number(
    options: dict[str, Any], field: str | None, entries: dict[str, float], what: str, fused_ops: bool
) -> None:
    learner = ReferenceLearner(O, A, make_config(options, fused_ops=fused_ops), seed=1)
    learner.update(random_replay(), 2)
    state = learner.state_dict()
    for name, value in entries.items():
        state[name].fill_(value)
    learner.load_state_dict(state)
    batch = random_batch(0)
    batch = batch._replace(observation=1e3 * batch.observation, terminated=torch.zeros(B))
    if field is not None:
        getattr(batch, field)[3] = math.nan
    with pytest.raises(FloatingPointError, match=rf"^update 3: {what} is not finite; no parameter has taken it on$"):
        learner.update_batch(batch)
    assert learner.gradient_updates == 2
    after = learner.state_dict()
    assert all(value.isfinite().all() for name, value in after.items() if name not in entries)


@every_learner
def test_an_overflow_in_the_temperatures_optimiser_is_named(make: Callable[..., Learner]) -> None:
    learner = make({"target_entropy": 1e25})
    with pytest.raises(FloatingPointError, match=r"^update 1: the optimiser state of log_alpha is not finite;"):
        learner.update_batch(random_batch(0))
    state = learner.state_dict()
    assert state["alpha_optimizer.exp_avg_sq"] == state["alpha_optimizer.step"] == state["log_alpha"] == 0


# ---- Replay --------------------------------------------------------------------------------------------------------


def transitions(count: int, start: int = 0) -> list[np.ndarray]:
    """Fields whose every entry is their transition's number; of the action, a thousandth of it."""
    number = np.arange(start, start + count, dtype=np.float32)
    wide, narrow = np.repeat(number[:, None], O, 1), np.repeat(number[:, None] / 1000, A, 1)
    return [wide, narrow, number, wide.copy(), np.ones(count, np.bool_)]


def test_replay_stores_any_view() -> None:
    fields = [
        np.asfortranarray(normal(5, O).numpy()),
        normal(5, 3 * A).tanh().numpy()[:, ::-3],
        np.broadcast_to(np.float32(2), (5,)),
        normal(O).expand(5, O),
        np.ones(10, np.bool_)[::2],
    ]
    replay, copies = ReplayBuffer(8, O, A), ReplayBuffer(8, O, A)
    replay.add(*fields)
    copies.add(*(np.array(np.asarray(field)) for field in fields))
    assert torch.equal(replay.rows[:5], copies.rows[:5])


def test_replay_stores_views_of_its_own_rows() -> None:
    """Around the end of the ring, where rows would be overwritten before they are read; and with fields exchanged."""
    replay = ReplayBuffer(5, O, A)
    replay.add(*transitions(5))
    replay.add(*transitions(3, 10))
    assert replay.rows[:, 0].tolist() == [10, 11, 12, 3, 4]
    observation, action, reward, next_observation, _ = replay.rows[2:].split((O, A, 1, O, 1), 1)
    replay.add(observation, action, reward.squeeze(1), next_observation, np.ones(3, np.bool_))
    assert replay.rows[:, 0].tolist() == [4, 11, 12, 12, 3]
    replay = ReplayBuffer(4, 1, 1)
    fields = normal(4, 1, seed=1), normal(4, 1, seed=2), normal(4), normal(4, 1, seed=3)
    replay.add(*(field.tanh() for field in fields), torch.ones(4).bool())
    rows = replay.rows.clone()
    replay.add(replay.rows[:, 3:4], replay.rows[:, 0:1], replay.rows[:, 1], replay.rows[:, 0:1], torch.ones(4).bool())
    assert torch.equal(replay.rows, rows[:, [3, 0, 1, 0, 4]])


def test_a_replay_buffer_that_cannot_fit_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"capacity: 1000000000000 transitions of 13 float32 need 52000\.00 GB, but cpu"
    ):
        ReplayBuffer(10**12, O, A)


def test_threads_may_share_a_replay_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = ReplayBuffer(14, O, A)
    replay.add(*transitions(14))
    pieces, write = replay._pieces, replay._write_host

    def slow_pieces(count: int) -> Any:
        chosen = pieces(count)
        time.sleep(0.05)  # for another thread to choose the same rows
        return chosen

    def slow_write(columns: Any, fields: Any, count: int) -> None:
        for column, field in zip(columns, fields, strict=True):
            write((column,), (field,), count)  # and for one to sample rows that are half written

    monkeypatch.setattr(replay, "_pieces", slow_pieces)
    monkeypatch.setattr(replay, "_write_host", slow_write)
    samples: list[Batch] = []

    def sample() -> None:
        for _ in range(20):
            samples.append(replay.sample(64))
            time.sleep(0.02)

    in_threads(lambda: replay.add(*transitions(7, 100)), lambda: replay.add(*transitions(7, 200)), sample)
    assert sorted(replay.rows[:, 0].tolist()) == [*range(100, 107), *range(200, 207)]
    for batch in samples:
        assert torch.equal(batch.observation[:, 0], batch.reward)
        assert torch.equal(batch.next_observation[:, -1], batch.reward)


def test_rows_beyond_2_31_elements_are_stored_sampled_and_learned_from(sparse: Tensor) -> None:
    """The rows before and behind the ring's end, where a 32-bit index would have lost its way long before."""
    capacity = len(sparse) // WIDTH
    assert (capacity - 4) * WIDTH > 2**31
    far, near = ReplayBuffer(8, O, A), ReplayBuffer(8, O, A)
    far.rows = sparse[: capacity * WIDTH].view(capacity, WIDTH)  # the memory of a buffer of that capacity
    far._columns = far._split(far.rows)
    far._host_rows, far._host_columns = far.rows.numpy(), tuple(column.numpy() for column in far._columns)
    far.capacity = far._size = capacity
    far._position, near._position = capacity - 4, 4
    near._size = 8
    batch = random_batch(0, rows=8)
    for replay in (far, near):
        replay.add(*batch[:4], batch.terminated.bool())
    assert torch.equal(far.rows[-4:], near.rows[-4:])
    assert torch.equal(far.rows[:4], near.rows[:4])

    def draw_as_far(count: int) -> Tensor:
        numbers = near_draw(count)
        return torch.where(numbers < 4, numbers, capacity - 8 + numbers)

    near_draw = ReplayBuffer.draw.__get__(near)
    samples = []
    for replay, draw in ((far, draw_as_far), (near, near_draw)):
        near._generator.manual_seed(3)
        replay.draw = draw  # type: ignore[method-assign]
        samples.append(replay.sample(64))
    for actual, expected in zip(*samples, strict=True):
        assert torch.equal(actual, expected)
    for make in (LEARNERS["fused"], LEARNERS["reference"]):
        states = []
        for replay in (far, near):
            near._generator.manual_seed(4)
            learner = make({"batch_size": 8})
            learner.update(replay, 3)
            states.append(learner.state_dict())
        assert_states_equal(*states)


# ---- Trainer and command line --------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    **{"num_envs": 2, "hidden_sizes": (16,), "batch_size": 16, "learning_starts": 20, "replay_capacity": 1000},
    **{"torch_threads": 1, "progress": False, "evaluation_episodes": 0},
}


def trained(**fields: Any) -> SAC:
    return SAC("Pendulum-v1", **{**SMALL, **fields}).learn(60)


@pytest.mark.parametrize("mode", modes().values(), ids=modes().keys())
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_the_callers_mode_does_not_reach_into_a_run(
    backend: str, mode: Callable[[], AbstractContextManager[Any]]
) -> None:
    expected = trained(backend=backend)
    with mode():
        model = trained(backend=backend)
        action = model.predict(np.ones(3, np.float32))
    assert_states_equal(model.learner.state_dict(), expected.learner.state_dict())
    np.testing.assert_array_equal(action, expected.predict(np.ones(3, np.float32)))
    assert isinstance(model.policy, Policy)


def test_two_runs_in_two_threads() -> None:
    models: dict[int, SAC] = {}
    in_threads(*(lambda seed=seed: models.update({seed: trained(seed=seed)}) for seed in (1, 2)))
    for seed in (1, 2):
        assert_states_equal(models[seed].learner.state_dict(), trained(seed=seed).learner.state_dict())


def test_a_reference_update_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    model = SAC("Pendulum-v1", **SMALL, backend="reference", critic_lr=5e9, run_dir=tmp_path)
    with pytest.raises(FloatingPointError, match=r"update \d+: .* is not finite; no parameter has taken it on"):
        model.learn(400)
    assert '"failed"' in (tmp_path / "summary.json").read_text()
    saved = SAC.load(tmp_path).learner.state_dict()
    assert_states_equal(saved, model.learner.state_dict())
    assert all(value.isfinite().all() for value in saved.values())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--batch-size 0", "batch_size: expected an int >= 1, got 0"),
        ("--total-timesteps 0", "total_timesteps: expected an int >= 1, got 0"),
        ("--replay-capacity 10", r"replay_capacity: expected at least batch_size \(256\), .* got 10"),
        ("--replay-capacity 1000000000000", r"capacity: 1000000000000 transitions .* need 36000\.00 GB, but cpu has"),
        (
            "--hidden-sizes 1000000 1000000",
            r"hidden_sizes: \(1000000, 1000000\) with .* need \d+\.\d\d GB, but cpu has",
        ),
        ("--batch-size 1000000000 --replay-capacity 1000000000", r"batch_size 1000000000 need \d+\.\d\d GB, but cpu"),
        ("--num-envs 10000000", "num_envs: expected an int in"),
    ],
)
def test_the_command_refuses_in_one_line(
    flags: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    arguments = f"train --env-id Pendulum-v1 --device cpu --run-dir {run_dir} {flags}"
    assert cli.main(arguments.split()) == cli.BAD_USAGE
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert re.search(said, output.err)
    assert not run_dir.exists()
