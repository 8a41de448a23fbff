# DevStack plugin: Nova keeps the disks of its servers on Sheepdog.
#
# DevStack sources this file with the name of a phase. What can be set is in
# the file "settings".

NOVA_SHEEPDOG_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

function install_sheepdog {
    local portals="portal=$SHEEPDOG_PORTAL"
    local directory=/etc/systemd/system/tgt.service.d

    if [[ -n "$SHEEPDOG_PACKAGES" ]]; then
        # shellcheck disable=SC2086  # They are several.
        install_package $SHEEPDOG_PACKAGES
    fi
    which dog >/dev/null || die $LINENO \
        "dog of Sheepdog 1.0 is not installed; set SHEEPDOG_PACKAGES"
    if is_service_enabled n-cpu; then
        is_ubuntu || die $LINENO "This plugin knows Debian and Ubuntu only"
        # cinder-volume offers its targets to the network.
        if is_service_enabled c-vol &&
                [[ $CINDER_TARGET_HELPER == tgtadm ]]; then
            portals+=",portal=$HOST_IP:3260"
        fi
        # Before the package starts tgtd, which would listen on all addresses.
        sudo install -d "$directory"
        sed "s/portal=[0-9].*/$portals/" \
            "$NOVA_SHEEPDOG_DIR/packaging/tgt.conf" |
            sudo tee "$directory/nova-sheepdog.conf" >/dev/null
        sudo systemctl daemon-reload
        install_package tgt qemu-block-extra
        restart_service tgt
    fi
}

function patch_nova {
    PYTHONPATH="$NOVA_SHEEPDOG_DIR/tools" python3 -B -c \
        'import sys; from graft import cli; sys.exit(cli.main())' \
        "$@" --nova "$NOVA_DIR"
}

function start_sheep {
    local i

    which sheep >/dev/null || die $LINENO \
        "sheep of Sheepdog 1.0 is not installed; set SHEEPDOG_PACKAGES"
    for ((i = 0; i < SHEEPDOG_DAEMONS; i++)); do
        sudo install -d "$SHEEPDOG_DATA_DIR/$i"
        sudo sheep "$SHEEPDOG_DATA_DIR/$i" -z "$i" \
            -c "local:$SHEEPDOG_DATA_DIR/cluster" -b "$SHEEPDOG_HOST" \
            -p $((SHEEPDOG_PORT + i)) --pidfile "$SHEEPDOG_DATA_DIR/$i.pid"
    done
    wait_for_sheep || die $LINENO "The sheep daemons do not find each other"
    # Formatting would empty a cluster that is formatted.
    if sheepdog_is_waiting; then
        dog cluster format -c "$SHEEPDOG_COPIES" -a "$SHEEPDOG_HOST" \
            -p "$SHEEPDOG_PORT"
    fi
}

function sheepdog_is_waiting {
    dog cluster info -a "$SHEEPDOG_HOST" -p "$SHEEPDOG_PORT" |
        grep -q 'Waiting for cluster to be formatted'
}

function wait_for_sheep {
    local i

    for ((i = 0; i < 60; i++)); do
        if [[ $(dog node list -r -a "$SHEEPDOG_HOST" -p "$SHEEPDOG_PORT" \
                2>/dev/null | wc -l) -eq $SHEEPDOG_DAEMONS ]]; then
            return 0
        fi
        sleep 1
    done
    return 1
}

function stop_sheep {
    local pids pid

    pids=$(sudo cat "$SHEEPDOG_DATA_DIR"/*.pid 2>/dev/null) || true
    # Daemons that end one by one would not make up a cluster again.
    dog cluster shutdown -a "$SHEEPDOG_HOST" -p "$SHEEPDOG_PORT" || true
    for pid in $pids; do
        timeout 60 tail --pid="$pid" -f /dev/null ||
            die $LINENO "Sheep daemon $pid does not end"
    done
}

function configure_nova_sheepdog {
    iniset "$NOVA_CONF" libvirt images_type sheepdog
    iniset "$NOVA_CONF" libvirt images_sheepdog_host "$SHEEPDOG_HOST"
    iniset "$NOVA_CONF" libvirt images_sheepdog_port "$SHEEPDOG_PORT"
    iniset "$NOVA_CONF" libvirt images_sheepdog_transport "$SHEEPDOG_TRANSPORT"
    iniset "$NOVA_CONF" libvirt images_sheepdog_portal "$SHEEPDOG_PORTAL"
    # Without it a snapshot uploads the holes of a disk as well.
    iniset "$NOVA_CONF" libvirt snapshot_image_format qcow2
    # The hosts do not share instances_path.
    iniset "$NOVA_CONF" workarounds \
        ensure_libvirt_rbd_instance_dir_cleanup True
}

# What differs from what DevStack sets; upstream.rst of the guide says why.
function configure_tempest_sheepdog {
    local feature

    iniset "$TEMPEST_CONFIG" compute-feature-enabled \
        block_migration_for_live_migration False
    for feature in stable_rescue live_migrate_paused_instances \
            volume_backed_live_migration; do
        iniset "$TEMPEST_CONFIG" compute-feature-enabled "$feature" True
    done
    if [[ $SHEEPDOG_TRANSPORT == native ]]; then
        iniset "$TEMPEST_CONFIG" compute-feature-enabled live_migration False
    fi
}

case "$1 ${2:-}" in
    "stack install")
        echo_summary "Installing what nova-sheepdog needs"
        install_sheepdog
        if is_service_enabled nova; then
            patch_nova apply
            # DevStack has copied the filters before they were patched.
            configure_rootwrap nova
        fi
        if is_service_enabled sheep; then
            start_sheep
        fi
        ;;
    "stack post-config")
        if is_service_enabled n-cpu; then
            echo_summary "Configuring Nova for Sheepdog"
            configure_nova_sheepdog
        fi
        ;;
    "stack test-config")
        if is_service_enabled tempest; then
            configure_tempest_sheepdog
        fi
        ;;
    "unstack "|"clean ")
        if is_service_enabled sheep; then
            stop_sheep
        fi
        if [[ $1 == clean ]]; then
            sudo rm -rf "$SHEEPDOG_DATA_DIR"
            patch_nova revert
        fi
        ;;
esac
