"""Which tests prove which line of the specification (spec/core.md), by its number.

A test is named `file::function`, the file relative to tests/ and without `.py`; a name that begins
with `::` is in the file of the name before it.
"""

from __future__ import annotations

TABLE: dict[str, tuple[str, ...]] = {
    # 1 Commands
    "1.1": (
        "blackbox/test_commands::test_bare_command_creates_and_runs_claude",
        "::test_bare_command_again_uses_the_running_vm",
        "::test_new_tmux_session_detach_and_attach_again",
        "integration/test_a_day::test_claude_works_in_the_sandbox",
    ),
    "1.2": (
        "blackbox/test_commands::test_shell_reads_commands_from_stdin",
        "::test_shell_runs_a_command_in_the_login_environment",
        "::test_shell_on_a_terminal_is_a_login_shell",
    ),
    "1.3": (
        "blackbox/test_commands::test_stop",
        "::test_stop_without_a_vm_is_success",
        "::test_stop_by_force_when_broken",
        "::test_restart_applies_changed_settings",
    ),
    "1.4": (
        "blackbox/test_commands::test_stop_all_stops_ours_only",
        "blackbox/test_microphone::test_voice_is_asked_for_by_option_or_variable",
        "blackbox/test_hook_verbs::test_sessions_are_shown_and_stop_asks",
    ),
    "1.5": (
        "blackbox/test_hook_verbs::test_events_and_restart_hooks",
        "blackbox/test_hooks::test_after_a_stop_and_a_start_all_is_known",
        "::test_a_killed_server_comes_back_and_nothing_is_lost_or_taken_twice",
    ),
    "1.6": (
        "blackbox/test_commands::test_status_of_an_empty_host",
        "::test_status_lists_ours_with_project_and_resources",
        "::test_status_as_json",
        "blackbox/test_microphone::test_voice_is_asked_for_by_option_or_variable",
        "unit/test_audioserver::test_a_sandbox_can_record_only_while_its_session_lives",
        "blackbox/test_hook_verbs::test_sessions_are_shown_and_stop_asks",
    ),
    "1.7": (
        "blackbox/test_commands::test_delete_removes_the_vm_and_no_file_of_the_project",
        "::test_delete_asks_on_a_terminal",
        "::test_delete_without_a_question",
    ),
    "1.8": (
        "blackbox/test_commands::test_prune_only_what_we_made",
        "::test_prune_by_prefix",
        "::test_prune_asks_on_a_terminal",
        "::test_prune_orphans",
        "integration/test_a_day::test_delete_and_prune_leave_everything_else_alone",
    ),
    "1.9": (
        "unit/test_tools_vm::test_a_new_one_takes_the_place_of_the_old",
        "::test_a_missing_tool_swaps_nothing",
        "unit/test_launcher::test_rebuild_tools_vm_is_the_verb",
        "blackbox/test_commands::test_a_failed_rebuild_leaves_the_old_one",
        "integration/test_a_day::test_a_small_tools_vm_is_built_from_packages",
    ),
    "1.10": (
        "blackbox/test_commands::test_list_and_info",
        "::test_create_does_not_attach",
        "::test_start_does_not_attach",
        "::test_doctor",
        "::test_settings_diff_and_pull",
        "::test_completion",
        "::test_uninstall_says_what_it_would_remove",
        "::test_dry_run_of_an_existing_sandbox_changes_nothing",
        "::test_dry_run_of_create_prints_the_commands",
        "unit/test_setup::test_linux_has_lima_from_its_release",
        "integration/test_a_day::test_setup_installs_lima_qemu_and_the_rest",
    ),
    "1.11": (
        "blackbox/test_commands::test_asks_on_a_terminal_when_claude_works",
        "::test_asks_before_a_base_is_stopped_in_which_claude_works",
        "::test_does_not_ask_without_a_terminal",
    ),
    # 2 Options
    "2.1": (
        "blackbox/test_commands::test_missing_directory",
        "::test_options_before_and_after_the_verb",
        "::test_sizes_ports_and_mounts_arrive_in_the_vm_s_config",
        "::test_arguments_behind_the_dashes_go_to_claude_unchanged",
        "::test_quiet_and_verbose",
        "unit/test_config::test_the_spec_s_names_of_flags_and_variables",
        "blackbox/test_microphone::test_voice_is_asked_for_by_option_or_variable",
        "integration/test_voice::test_a_tone_arrives_unchanged_and_the_microphone_closes",
    ),
    "2.2": (
        "blackbox/test_commands::test_help_and_version_need_nothing_installed",
        "::test_unknown_command_names_the_nearest",
        "::test_unknown_option_names_the_nearest",
        "::test_bad_values_are_usage_errors_before_anything_is_made",
        "unit/test_launcher::test_help_and_version_need_no_environment",
    ),
    # 3 Environment and files
    "3.1": (
        "blackbox/test_sandbox::test_environment_variables_choose_base_template_and_settings",
        "blackbox/test_commands::test_status_shows_base_and_template_from_the_environment",
        "blackbox/test_microphone::test_voice_is_asked_for_by_option_or_variable",
    ),
    "3.2": (
        "blackbox/test_sandbox::test_flag_beats_environment_beats_project_file_beats_user_file",
        "::test_errors_in_a_project_file_name_file_and_line",
        "::test_a_project_file_needs_approval_for_mounts_bound_to_its_content",
        "::test_a_project_file_stays_within_the_user_s_limits",
        "unit/test_config::test_what_reaches_the_host_needs_approval_of_this_very_content",
    ),
    "3.3": (
        "blackbox/test_sandbox::test_what_claude_finds_in_its_environment",
        "blackbox/test_hooks_launch::test_a_launch_has_the_host_listen",
    ),
    "3.4": (
        "blackbox/test_sandbox::test_one_credential_arrives_and_never_in_an_argv_or_a_log",
        "::test_a_loopback_base_url_points_to_the_host",
        "unit/test_login::test_exactly_one_credential_in_the_documented_order",
        "integration/test_a_day::test_the_environment_arrives",
    ),
    "3.5": (
        "blackbox/test_sandbox::test_proxy_only_when_the_user_says_so",
        "unit/test_prepare::test_proxy_and_ca_only_when_the_user_says_so",
    ),
    # 4 VM model
    "4.1": (
        "blackbox/test_sandbox::test_names",
        "::test_a_long_name_is_cut_to_lima_s_limits",
        "::test_two_projects_of_one_basename_get_two_vms",
        "unit/test_vm::test_a_name_is_always_one_that_lima_takes",
        "blackbox/test_faults::test_lima_home_too_long",
    ),
    "4.2": (
        "blackbox/test_sandbox::test_the_mark_names_instance_and_project",
        "::test_a_hand_made_clone_is_not_ours",
        "::test_a_moved_project_is_recognised_and_asked_about",
        "unit/test_find::test_a_mark_of_another_schema_is_explained",
    ),
    "4.3": (
        "blackbox/test_sandbox::test_what_lima_would_add_is_refused_with_the_reason",
        "::test_an_agent_forward_added_later_is_refused_at_the_next_start",
    ),
    "4.4": (
        "blackbox/test_sandbox::test_a_base_that_runs_is_stopped_first_and_started_again",
        "::test_a_named_base_that_is_missing",
        "::test_no_base_and_no_terminal_is_made_from_the_template",
        "unit/test_create::test_too_little_space_or_too_small_a_disk_is_told_before_the_clone",
    ),
    "4.5": (
        "blackbox/test_sandbox::test_a_template_s_home_mount_is_replaced",
        "::test_a_foreign_base_loses_its_mounts_and_forwards",
        "::test_a_guest_without_9p_is_refused",
    ),
    "4.6": (
        "blackbox/test_sandbox::test_changed_flags_on_a_stopped_vm_are_applied",
        "::test_changed_flags_on_a_running_vm_are_told",
        "::test_ports_on_a_running_vm",
        "::test_a_disk_cannot_shrink",
        "::test_a_taken_host_port_is_an_error_before_anything_is_made",
        "unit/test_boot::test_a_port_below_1024_is_told",
    ),
    "4.7": (
        "blackbox/test_commands::test_bare_command_starts_a_stopped_vm",
        "blackbox/test_faults::test_half_a_vm_left_running_is_repaired",
        "blackbox/test_sandbox::test_a_vm_whose_config_lima_cannot_read_is_explained",
    ),
    "4.8": (
        "blackbox/test_sandbox::test_the_project_is_at_its_own_path",
        "::test_an_odd_path_is_at_mnt_project_and_said_once",
        "::test_a_path_with_unicode_letters_stays",
        "::test_a_path_that_the_host_s_side_cannot_carry_is_a_clear_error",
        "::test_what_must_not_be_shared_is_refused",
        "unit/test_places::test_no_character_that_breaks_cloud_init_gets_through",
        "integration/test_a_day::test_both_sides_see_what_the_other_writes",
    ),
    "4.9": (
        "blackbox/test_faults::test_project_vanished",
        "::test_project_became_a_symlink_elsewhere",
        "::test_mount_vanished_is_not_made_anew",
    ),
    "4.10": (
        "blackbox/test_sandbox::test_the_ignore_rule_is_last_and_nothing_else_is_forwarded",
        "integration/test_a_day::test_a_twin_gets_its_own_vm_with_ports_and_the_login",
    ),
    "4.11": ("blackbox/test_sandbox::test_resources_default_to_half_of_the_host",
             "unit/test_create::test_half_of_the_memory_up_to_16_gib"),
    "4.12": ("blackbox/test_sandbox::test_a_base_without_claude_gets_it_or_fails_loudly",
             "blackbox/test_commands::test_update_brings_a_newer_claude"),
    "4.13": ("blackbox/test_sandbox::test_no_dialog_at_the_first_run",
             "integration/test_a_day::test_the_tui_under_tmux"),
    "4.14": ("blackbox/test_sandbox::test_a_late_guest_agent_is_a_warning",
             "::test_a_slow_host_agent_is_tried_once_more"),
    # 5 Settings and login
    "5.1": (
        "blackbox/test_sandbox::test_settings_are_mounted_read_only_outside_the_home_and_copied_in",
        "integration/test_a_day::test_settings_come_in_and_cannot_be_changed_from_the_guest",
    ),
    "5.2": (
        "unit/test_settings::test_three_way",
        "::test_changed_on_one_side_or_on_both",
        "blackbox/test_commands::test_settings_diff_and_pull",
        "::test_settings_files_are_removed_from_the_guest_too",
    ),
    "5.3": (
        "blackbox/test_commands::test_login_stores_a_token_and_forgets_it",
        "blackbox/test_sandbox::test_the_host_s_credential_is_handed_over_and_comes_back",
        "unit/test_login::test_what_is_not_plausible_is_not_taken",
        "::test_the_keychain_is_written_by_stdin_only",
        "::test_a_login_in_one_sandbox_reaches_the_others",
        "unit/test_login_back::test_another_account_is_a_question_on_a_terminal",
        "::test_an_expiry_that_no_issuer_gives_is_refused_and_said",
        "::test_undo_puts_back_what_was_there_before_that_sandbox_changed_it",
        "blackbox/test_login_shared::test_a_hostile_guest_s_own_account_goes_nowhere",
    ),
    "5.4": (
        "blackbox/test_sandbox::test_the_user_s_own_claude_directory_is_warned_about",
        "blackbox/test_login_shared::test_the_user_s_own_claude_login_is_read_and_never_written",
    ),
    # 6 Running Claude
    "6.1": (
        "blackbox/test_commands::test_bare_command_creates_and_runs_claude",
        "::test_the_user_s_own_permission_mode_wins",
    ),
    "6.2": (
        "blackbox/test_commands::test_new_tmux_session_detach_and_attach_again",
        "::test_exit_code_comes_through_tmux",
        "::test_the_session_s_environment_reaches_it_without_a_trace",
        "::test_inside_tmux_the_session_is_renamed",
        "::test_without_tmux_claude_runs_directly",
        "unit/test_terminal::test_the_terminal_is_left_clean",
        "blackbox/test_tmux_sessions::test_another_project_s_session_is_not_ours_by_its_name",
        "integration/test_a_day::test_the_tui_under_tmux",
    ),
    "6.3": (
        "blackbox/test_sandbox::test_lima_s_log_is_in_a_file_that_errors_name",
        "unit/test_terminal::test_progress_on_a_terminal_shows_names_as_they_are",
        "blackbox/test_faults::test_create_interrupted",
        "::test_start_interrupted",
        "integration/test_a_day::test_killed_during_the_clone_the_next_run_starts_over",
    ),
    # 7 Host
    "7.1": (
        "unit/test_host::test_kvm_that_opens_and_does_not_work",
        "::test_lima_too_old",
        "blackbox/test_faults::test_lima_too_old",
        "blackbox/test_sandbox::test_locks_are_not_in_lima_s_directories_and_sockets_are_short",
        "integration/test_as_root::test_the_main_path_as_root",
    ),
    # 8 The tools VM
    "8.1": (
        "unit/test_tools::test_the_thirteen_are_promised_in_both_modes",
        "::test_the_yaml_lists_every_tool",
        "::test_every_pin_is_used_and_every_use_is_pinned",
        "::test_verify",
        "::test_only",
    ),
    "8.2": (
        "unit/test_tools::test_not_in_this_mode_is_no_failure",
        "unit/test_tools_vm::test_the_mode_is_found_out",
        "unit/test_image::test_mmdebstrap_argv",
        "integration/test_a_day::test_a_small_tools_vm_is_built_from_packages",
    ),
    "8.3": (
        "unit/test_swap::test_exchange",
        "unit/test_tools_vm::test_a_new_one_takes_the_place_of_the_old",
        "::test_killed_in_between",
    ),
}  # fmt: skip
