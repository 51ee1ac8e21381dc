"""Every setting changes what happens: a table names the test that shows it."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from entrenar_core.config import DistillationConfig
from entrenar_core.config.adapters import StudentLora
from entrenar_core.config.finetuning import FineTuneConfig
from entrenar_core.config.teachers import TeacherConfig

TESTS = Path(__file__).parent.parent
TRAINING, MODELS = "integration/test_settings.py", "integration/test_settings_of_models.py"
LOSSES, ENTRIES = "integration/test_settings_of_losses.py", "core/test_training_layer_terms.py"
ASSEMBLY, LOOKING = "core/test_training_losses.py", "integration/test_diagnostics.py"
EXPORTED = "integration/test_exported_runs.py"
RESULT, BAD = "integration/test_result.py", "integration/test_bad_input.py"
SOURCES, LOADING = "core/test_data_sources.py", "core/test_models_loading.py"
NARROW = "core/test_models_narrowing.py"
SEVERAL = "integration/test_several_teachers.py"
EXITS = "integration/test_exits.py"
SERVED = "integration/test_endpoint_teachers.py"
SENTENCES = "integration/test_sentences.py"
STUDENT, TOKENIZING = "core/test_models_student.py", "core/test_data_tokenizing.py"

SHOWN_BY = {
    "task": f"{MODELS}::test_the_task_decides_what_is_learnt",
    "teacher.model_id": f"{RESULT}::test_the_card_states_the_facts",
    "teacher.revision": f"{MODELS}::test_a_revision_chooses_the_weights",
    "teacher.format": f"{MODELS}::test_format_and_files_choose_the_weights",
    "teacher.files": f"{MODELS}::test_format_and_files_choose_the_weights",
    "teacher.allow_pickle": f"{BAD}::test_pickles_are_not_read_unless_allowed",
    "teacher.trust_remote_code": f"{LOADING}::test_code_of_a_model_runs_only_when_trusted",
    "teacher.cache.dir": "integration/test_cached_teachers.py::"
    "test_a_run_from_the_cache_is_the_run_from_the_teacher_and_asks_it_nothing",
    "teacher.cache.missing": "integration/test_cached_signals.py::"
    "test_rows_that_a_cache_lacks_are_read_live_and_counted",
    "teacher.cache.memory": "integration/test_cached_signals.py::"
    "test_a_cache_in_memory_asks_the_teacher_once_for_every_row",
    "teacher.cache.precision": "integration/test_cached_signals.py::"
    "test_a_cache_in_memory_asks_the_teacher_once_for_every_row",
    "distillation.exits.enabled": f"{EXITS}::test_exits_that_are_not_enabled_take_no_part",
    **{
        f"distillation.exits.{name}": f"{EXITS}::test_the_loss_of_exits_is_that_of_their_own_logits"
        for name in ("layers", "learn_from", "divergence")
    },
    "teacher.endpoint": f"{SERVED}::test_a_student_learns_from_a_server_as_from_the_model",
    "teacher.model": f"{SERVED}::test_a_student_learns_from_a_server_as_from_the_model",
    "teacher.top_logprobs": f"{SERVED}::test_with_fewer_tokens_the_loss_is_that_of_the_selection",
    "teacher.concurrency": "core/test_endpoint_protocols.py::test_rows_are_asked_for_at_once_and_answered_in_order",
    "teacher.api_key_env": "core/test_endpoint_client.py::test_the_key_is_sent_and_told_to_no_one",
    "teacher.timeout_s": f"{SERVED}::test_how_long_a_server_is_waited_for_is_said",
    "teacher.patience_s": f"{SERVED}::test_how_long_a_server_is_waited_for_is_said",
    "teacher.members.weight": f"{SEVERAL}::test_members_weigh_what_they_say",
    "teacher.members.rows": f"{SEVERAL}::test_rows_are_taught_by_the_teacher_of_their_kind",
    "teacher.weighting": f"{SEVERAL}::test_weights_are_learnt_from_labels",
    "teacher.moving_average.decay": f"{SEVERAL}::test_the_average_follows_the_student",
    "teacher.moving_average.warmup": f"{SEVERAL}::test_the_average_follows_the_student",
    "dataset.route_column": f"{SEVERAL}::test_rows_are_taught_by_the_teacher_of_their_kind",
    "teacher.dtype": f"{MODELS}::test_the_teacher_is_held_in_its_dtype",
    "teacher.load_in": "core/test_models_placing.py::test_a_quantised_model_is_the_model_with_rounded_weights",
    "teacher.device_map": "core/test_models_placing.py::test_what_is_on_disk_is_not_in_memory",
    "teacher.batch_size": "integration/test_large_teachers.py::test_a_teacher_reads_as_many_rows_at_once_as_it_is_told",
    "teacher.finetune.method": f"{RESULT}::test_a_fitted_teacher_knows_the_data_and_is_kept",
    "teacher.finetune.l2": f"{MODELS}::test_how_a_teacher_is_fitted_changes_it",
    "teacher.finetune.epochs": f"{MODELS}::test_how_a_teacher_is_fitted_changes_it",
    "teacher.finetune.learning_rate": f"{MODELS}::test_how_a_teacher_is_fitted_changes_it",
    "teacher.finetune.batch_size": f"{MODELS}::test_how_a_teacher_is_fitted_changes_it",
    "teacher.pooling": f"{SENTENCES}::test_a_decoder_learns_by_its_last_token",
    "student.pooling": f"{SENTENCES}::test_a_folder_of_ours_teaches_again_with_no_task_named",
    "student.model_id": f"{STUDENT}::test_a_referenced_student_is_loaded",
    "student.revision": f"{MODELS}::test_a_revision_chooses_the_weights",
    "student.format": f"{MODELS}::test_format_and_files_choose_the_weights",
    "student.files": f"{MODELS}::test_format_and_files_choose_the_weights",
    "student.allow_pickle": f"{MODELS}::test_format_and_files_choose_the_weights",
    "student.trust_remote_code": f"{STUDENT}::test_a_referenced_student_runs_its_code_only_when_trusted",
    "student.init_from.teacher_layers": f"{STUDENT}::test_copied_layers_have_the_bits_of_the_teachers",
    "student.init_from.layers_from": f"{STUDENT}::test_a_number_of_layers_may_be_the_first_or_the_last",
    "student.init_from.hidden_size": f"{NARROW}::test_a_narrower_student_of_any_family_is_built_saved_and_loaded",
    "student.init_from.num_heads": f"{NARROW}::test_a_narrower_student_of_any_family_is_built_saved_and_loaded",
    "student.init_from.num_kv_heads": f"{NARROW}::test_a_narrower_student_of_any_family_is_built_saved_and_loaded",
    "student.init_from.intermediate_size": f"{NARROW}::test_a_narrower_student_of_any_family_is_built_saved_and_loaded",
    "student.init_from.width": f"{NARROW}::test_truncated_parts_of_fused_matrices_are_the_parts_of_the_teacher",
    "student.init_from.importance": f"{NARROW}::test_the_neurons_that_stay_are_those_that_add_most_on_the_sample",
    "student.init_from.embeddings": f"{NARROW}::test_a_stream_of_few_directions_is_turned_into_them_without_loss",
    "student.architecture": f"{STUDENT}::test_sizes_build_any_family",
    "student.hidden_size": f"{RESULT}::test_a_student_of_given_sizes_has_them",
    "student.num_layers": f"{RESULT}::test_a_student_of_given_sizes_has_them",
    "student.num_heads": f"{RESULT}::test_a_student_of_given_sizes_has_them",
    "student.num_kv_heads": f"{STUDENT}::test_grouped_heads_are_as_many_as_given",
    "student.intermediate_size": f"{RESULT}::test_a_student_of_given_sizes_has_them",
    "student.dropout": f"{STUDENT}::test_the_dropout_setting_changes_the_student_and_none_keeps_its_own",
    "distillation.divergence": f"{LOSSES}::test_what_is_compared_changes_the_soft_loss_alone",
    "distillation.top_k": f"{LOSSES}::test_what_is_compared_changes_the_soft_loss_alone",
    "distillation.top_k_tail": f"{LOSSES}::test_what_is_compared_changes_the_soft_loss_alone",
    "distillation.entropy_threshold": f"{LOSSES}::test_what_is_compared_changes_the_soft_loss_alone",
    "distillation.label_smoothing": f"{LOSSES}::test_smoothing_changes_the_hard_loss_alone",
    "distillation.losses.name": f"{LOSSES}::test_every_loss_of_the_table_trains",
    "dataset.source": f"{SOURCES}::test_the_built_in_docstrings_are_split_without_a_text_on_both_sides",
    "dataset.name": f"{SOURCES}::test_reports_call_the_data_by_name_or_file",
    "dataset.subset": "core/test_data_streams.py::test_a_data_set_of_the_hub_is_read_by_subset_split_and_revision",
    "dataset.revision": "core/test_data_streams.py::test_a_data_set_of_the_hub_is_read_by_subset_split_and_revision",
    "dataset.path": f"{SOURCES}::test_every_kind_of_file_gives_the_same_rows",
    "dataset.split": f"{SOURCES}::test_split_and_eval_split_choose_files_by_their_names",
    "dataset.eval_split": f"{SOURCES}::test_split_and_eval_split_choose_files_by_their_names",
    "dataset.eval_fraction": f"{SOURCES}::test_eval_fraction_eval_rows_and_max_rows_set_how_many",
    "dataset.eval_rows": f"{SOURCES}::test_eval_fraction_eval_rows_and_max_rows_set_how_many",
    "dataset.max_rows": f"{SOURCES}::test_eval_fraction_eval_rows_and_max_rows_set_how_many",
    "dataset.labelled_rows": f"{SOURCES}::test_labelled_rows_keeps_so_many_labels_and_every_class",
    "dataset.streaming": "core/test_data_streams.py::test_the_first_rows_are_for_evaluation_and_training_skips_them",
    "dataset.text_column": f"{SOURCES}::test_columns_are_read_under_the_names_that_settings_give",
    "dataset.mask_probability": "core/test_data_masking.py::test_the_shares_are_those_of_the_source",
    "dataset.tokens_column": "core/test_data_tags.py::test_what_is_no_data_of_tagged_words_is_refused",
    "dataset.label_column": f"{SOURCES}::test_columns_are_read_under_the_names_that_settings_give",
    "dataset.prompt_column": f"{TOKENIZING}::test_of_a_prompt_with_its_completion_the_completion_is_learnt",
    "dataset.completion_column": f"{TOKENIZING}::test_of_a_prompt_with_its_completion_the_completion_is_learnt",
    "dataset.reasoning_column": f"{TOKENIZING}::test_a_reasoning_is_learnt_with_a_weight_of_its_own",
    "dataset.reasoning_weight": f"{TOKENIZING}::test_a_reasoning_is_learnt_with_a_weight_of_its_own",
    "dataset.completion_weight": f"{TOKENIZING}::test_a_reasoning_is_learnt_with_a_weight_of_its_own",
    "dataset.messages_column": f"{TOKENIZING}::test_only_what_the_assistant_says_in_a_chat_is_learnt",
    "dataset.max_length": f"{TOKENIZING}::test_what_is_longer_than_a_limit_is_cut_and_has_no_end",
    "dataset.packing": "integration/test_packing.py::test_a_run_of_packed_rows_is_the_run_of_its_examples",
    "dataset.num_proc": f"{TOKENIZING}::test_num_proc_is_how_many_processes_tokenise",
    "training.epochs": f"{TRAINING}::test_rows_epochs_and_batches_make_the_steps",
    "training.max_steps": f"{TRAINING}::test_rows_epochs_and_batches_make_the_steps",
    "training.batch_size": f"{TRAINING}::test_rows_epochs_and_batches_make_the_steps",
    "training.gradient_accumulation": f"{TRAINING}::test_rows_epochs_and_batches_make_the_steps",
    "training.eval_batch_size": f"{TRAINING}::test_evaluation_has_batches_of_its_own",
    "training.optimizer": f"{TRAINING}::test_the_optimiser_decides_what_is_kept_of_each_parameter",
    "training.learning_rate": f"{TRAINING}::test_the_learning_rate_follows_its_schedule",
    "training.schedule": f"{TRAINING}::test_the_learning_rate_follows_its_schedule",
    "training.warmup_steps": f"{TRAINING}::test_the_learning_rate_follows_its_schedule",
    "training.weight_decay": f"{TRAINING}::test_weight_decay_shrinks_weights_and_spares_norms",
    "training.max_grad_norm": f"{TRAINING}::test_a_clipped_gradient_moves_less",
    "training.mixed_precision": f"{TRAINING}::test_autocast_computes_in_bf16_and_keeps_the_weights_in_fp32",
    "training.gradient_checkpointing": f"{TRAINING}::test_gradient_checkpointing_computes_layers_twice",
    "training.group_by_length": f"{TRAINING}::test_grouping_by_length_pads_less",
    "training.dataloader_workers": f"{TRAINING}::test_workers_are_processes_and_change_nothing",
    "training.log_every": f"{TRAINING}::test_log_every_sets_the_lines_of_the_metrics",
    "training.diagnose_every": f"{LOOKING}::test_the_norms_of_all_groups_make_up_the_norm_of_the_gradient",
    "training.eval_every": f"{TRAINING}::test_eval_every_sets_the_evaluations",
    "training.select": f"{TRAINING}::test_the_selected_weights_are_the_last_or_the_best",
    "training.early_stopping.patience": f"{TRAINING}::test_training_stops_when_patience_ends",
    "training.early_stopping.min_delta": f"{TRAINING}::test_training_stops_when_patience_ends",
    "training.trackers": f"{TRAINING}::test_trackers_get_the_metrics",
    "training.seed": f"{TRAINING}::test_the_seed_decides_the_bits",
    "training.baseline": f"{RESULT}::test_a_teacher_that_is_no_better_than_the_student_alone_is_told",
    "output.dir": f"{RESULT}::test_the_files_agree_with_each_other",
    "output.formats": f"{RESULT}::test_the_files_agree_with_each_other",
    "output.quantize": f"{EXPORTED}::test_a_run_ends_with_a_gguf_that_llama_cpp_runs",
    "output.verify": f"{EXPORTED}::test_a_run_ends_with_a_gguf_that_llama_cpp_runs",
    "output.checkpoint_every": f"{TRAINING}::test_checkpoints_are_as_often_and_as_many_as_asked",
    "output.keep": f"{TRAINING}::test_checkpoints_are_as_often_and_as_many_as_asked",
}


# What several settings have in common.
SCHEDULED = [f"distillation.{name}" for name in ("temperature", "alpha", "losses.weight", "losses.temperature")]
SCHEDULED += [f"distillation.{name}.weight" for name in ("progressive", "attention", "relations", "exits")]
SCHEDULED += ["distillation.exits.temperature"]
SHORT = {
    "progressive": ("layer_mapping", "projection", "loss"),
    "attention": ("layer_mapping", "loss", "head_mapping", "head_weighting"),
    "relations": ("layer_mapping", "loss"),
}
BETWEEN_LAYERS = ("layers", "embeddings", "projection", "pool", "group_size", "power", "heads", "head_weights")
BETWEEN_LAYERS += ("relations", "relation_heads")
SOFT = ("entropy_threshold", "top_k", "top_k_tail", "forward", "reverse", "beta", "normalised", "skew")
SHOWN_BY |= {
    f"{setting}.{part}": f"{LOSSES}::test_schedules_are_followed_and_told"
    for setting in SCHEDULED
    for part in ("schedule", "start", "end")
}
SHOWN_BY |= {
    f"{setting}.{part}": "core/test_config_losses.py::test_a_schedule_is_a_function_of_the_step"
    for setting in SCHEDULED
    for part in ("warmup_from", "warmup_steps")
}
SHOWN_BY |= {
    f"distillation.{section}.{name}": f"{LOSSES}::test_short_spellings_ask_for_losses_between_layers"
    for section, names in SHORT.items()
    for name in names
}
SHOWN_BY |= {
    f"distillation.{section}.enabled": f"{LOSSES}::test_what_is_not_enabled_or_has_no_weight_takes_no_part"
    for section in SHORT
}
SHOWN_BY |= {
    f"distillation.losses.{name}": f"{ENTRIES}::test_each_setting_of_an_entry_changes_what_is_compared"
    for name in BETWEEN_LAYERS
}
SHOWN_BY |= {
    f"distillation.losses.{name}": f"{ASSEMBLY}::test_each_setting_of_a_soft_loss_changes_its_values" for name in SOFT
}
SHOWN_BY["distillation.losses.temperature"] = (
    "core/test_training_vector_terms.py::test_the_temperature_of_similarities_is_that_of_the_entry"
)
SHOWN_BY["distillation.losses.label_smoothing"] = f"{ASSEMBLY}::test_labels_are_as_smooth_as_the_entry_says"


# A member of several teachers is made as a single one is, by the same code.
OF_A_MODEL = {f"teacher.{name}" for name in TeacherConfig.model_fields}
SHOWN_BY |= {
    name.replace("teacher.", "teacher.members.", 1): test
    for name, test in SHOWN_BY.items()
    if ".".join(name.split(".")[:2]) in OF_A_MODEL
}


ADAPTED, TUNED, RULES = "core/test_models_adapted.py", "integration/test_finetuning.py", "core/test_config_adapters.py"
OF_LORA = dict.fromkeys(StudentLora.model_fields, f"{ADAPTED}::test_a_model_is_adapted_as_peft_does_it") | {
    "enabled": f"{RULES}::test_an_adapter_that_is_switched_off_is_none",
    "biases": f"{ADAPTED}::test_biases_and_whole_modules_train_beside_an_adapter",
    "modules_to_save": f"{ADAPTED}::test_biases_and_whole_modules_train_beside_an_adapter",
    "lora_plus_ratio": f"{ADAPTED}::test_b_learns_faster_with_lora_plus",
}
QUANTIZED = f"{ADAPTED}::test_gradients_go_through_quantised_layers_also_after_an_evaluation"
OF_QUANTIZATION = dict.fromkeys(("bits", "type", "double_quantization", "compute_dtype"), QUANTIZED) | {
    "group_size": f"{RULES}::test_each_way_to_quantise_is_honoured_or_refused_by_name"
}
SHOWN_BY |= {f"student.lora.{name}": test for name, test in OF_LORA.items()}
SHOWN_BY |= {f"student.quantization.{name}": test for name, test in OF_QUANTIZATION.items()}
SHOWN_BY["student.dtype"] = QUANTIZED
SHOWN_BY["output.merge"] = f"{TUNED}::test_an_adapter_is_merged_when_training_is_over"
# A model that is fine-tuned is loaded and trained as a student is, by the same code.
OF_A_TUNING = {f"adapter.{name}": test for name, test in OF_LORA.items() if name != "enabled"}
OF_A_TUNING |= {f"model.quantization.{name}": test for name, test in OF_QUANTIZATION.items()}
OF_A_TUNING |= {
    f"adapter.{name}": f"{ADAPTED}::test_other_methods_are_peft_s_and_come_back_from_their_files"
    for name in ("method", "virtual_tokens", "feedforward_modules")
}
OF_A_TUNING |= {
    f"model.{name}": SHOWN_BY[f"student.{name}"]
    for name in (*(field for field in TeacherConfig.model_fields if f"student.{field}" in SHOWN_BY), "dropout")
    if name != "pooling"
}


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings that hold a value."""
    for name, info in model.model_fields.items():
        sections = list(sections_of(info.annotation))
        if not sections:
            yield prefix + name
        for section in sections:
            yield from leaves(section, f"{prefix}{name}.")


def sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from sections_of(part)


def test_every_setting_is_shown_by_a_test_that_exists() -> None:
    assert set(leaves(DistillationConfig)) == set(SHOWN_BY)
    assert {name for name in leaves(FineTuneConfig) if name not in SHOWN_BY} == set(OF_A_TUNING)
    for setting, test in (SHOWN_BY | OF_A_TUNING).items():
        file, name = test.split("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert name in {item.name for item in tree.body if isinstance(item, ast.FunctionDef)}, f"{setting}: {test}"
